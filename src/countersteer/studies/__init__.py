"""Studies: a TOML file in, a run on disk out. Spec, plan, calibration, generation and grading of every arm."""
