"""What a run found beyond its arms, as it is stored: detectors, random sets, the trace, agreement of judges."""

from __future__ import annotations

from typing import Any

from countersteer.report.agreement import agreements
from countersteer.store.reading import RunReader


def experiments(run: RunReader) -> dict[str, Any]:
    """What the run found beyond its arms: detectors, random sets, trace, agreement of judges; None where not done."""
    found = run.fact("detectors")
    return {
        "detectors": None if found is None else {**found, "table": found["table"][:60]},
        "detectors_steered": run.fact("detectors_steered"),
        "random_sets": run.fact("random_sets"),
        "trace": run.fact("trace"),
        "agreement": agreements(run) or None,
    }
