"""The defence's demo on the organism: fit, sweep, scorecard, then the same bundle on a misaligned fine-tune.

The fine-tune is dismissive whatever its system prompt says, the case that prompts cannot defend; the bundle is derived
for it (its separation measured again) and graded there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from countersteer.defence.bundles import derive
from countersteer.defence.scorecard import PARTS
from countersteer.defence.settings import Settings, load
from countersteer.defence.steps import crew_of, engine_for, run_fit, run_scorecard, run_sweep
from countersteer.edits.bundle import load_bundle, save_bundle

ADAPTER = "organism-dismissive"


def run_demo(
    out: Path, *, settings: Settings | None = None, workers: int = 1, observer: Any = None
) -> dict[str, Any]:  # fmt: skip
    """Everything into the folder `out`; the facts of each step. `workers`: processes that answer. Raises as they do."""
    chosen = settings or load("preset:defence-organism")
    fitted = run_fit(chosen, out / "fit", observer=observer)
    bundle = out / "warm.safetensors"
    with crew_of(chosen, workers) as crew:
        more: dict[str, Any] = {"crew": crew, "observer": observer}
        swept = run_sweep(out / "fit", chosen, bundle, **more)
        card = run_scorecard(bundle, chosen, out / "card", parts=PARTS, **more)
        with engine_for(chosen, adapter=ADAPTER) as engine:
            derived = save_bundle(derive(load_bundle(bundle), engine), out / "warm-derived.safetensors")
        tuned = run_scorecard(derived, chosen, out / "card-fine-tune", adapter=ADAPTER, parts=(), **more)
    return {"fit": fitted, "sweep": swept, "scorecard": card, "fine_tune": tuned}
