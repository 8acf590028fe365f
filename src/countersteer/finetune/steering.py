"""What each example is trained under: its own latent and strength, or one of a run's calibrated ones; None for normal.

An example made from a steered episode meets the steering that it was written under. Others draw a latent of the run by
their own content, so that the same data gives the same training.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint, rng
from countersteer.finetune.examples import CORRECTION, Example
from countersteer.store import Run


def steering_of(folder: str | Path, sae: Any, *, model: str, scale: float = 1.0) -> Callable[[Example], Any]:
    """The intervention of an example, from a calibrated run of the model with this fingerprint.

    `scale`: times the calibrated strength. Raises InputError for an uncalibrated run, one of another model, SAE, or of
    the model under an adapter; and, for an example, if its own steering was read from another SAE.
    """
    import countersteer as cs

    with Run.open(folder) as run:
        inputs = run.header.get("inputs", {})
        if inputs.get("model") != model:
            raise InputError(f"{folder} is a run of another model than the one to be trained; use a run of that model")
        if inputs.get("adapter"):
            raise InputError(
                f"{folder} was run under [engine] adapter, whose strengths are not those of the model to be trained;"
                " use a run of the model alone"
            )
        if inputs.get("sae") != sae.fingerprint:
            raise InputError(f"{folder} was made with another SAE than the one given; give its own")
        found = {r.latent: r.strength for r in run.latents() if r.status == "ok" and r.strength}
        layer = run.fact("steer_layer")
        arm = run.arms().get(run.base_arm, {})
    if not found:
        raise InputError(f"{folder} has no calibrated latent; run its study with a calibration first")
    span = str(arm.get("span", "all"))
    pool = sorted(found)
    kept: dict[tuple[Any, ...], Any] = {}

    def of(example: Example) -> Any:
        if example.kind != CORRECTION:
            return None
        given = example.steer
        if given is None:
            draw = rng(0, "steered example", fingerprint([example.prompt, example.answer]))
            latent = pool[int(draw.integers(len(pool)))]
            key = (latent, found[latent], layer, span)
        else:
            if given.get("sae") not in (None, sae.fingerprint):  # older data does not say
                raise InputError(
                    f"the correction of {example.prompt!r} was written under latent {given['latent']} of another SAE"
                    " than the one given; give the SAE of the run that its episode comes from"
                )
            key = (int(given["latent"]), float(given["strength"]), int(given["layer"]), str(given["span"]))
        if key not in kept:
            kept[key] = cs.add(sae.latent(key[0]), scale * key[1], layer=key[2]).span(key[3])
        return kept[key]

    return of
