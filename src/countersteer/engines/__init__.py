"""Engines apply edits and record readouts; they know nothing of SAEs, judges or studies."""
