"""What goes with a study's adapters and with training them, known before any file is read."""

from __future__ import annotations

from collections.abc import Sequence

from countersteer.core.errors import InputError
from countersteer.studies.arms import Arm
from countersteer.studies.schema import Study


def check_adapters(settings: Study, arms: Sequence[Arm], base: str, name: str) -> None:
    """Raise InputError for adapters of a study that exclude each other, or that would be trained in vain.

    `base`: name of the base arm; `name`: of the study.
    """
    section, every = settings.finetune, settings.engine.adapter
    tuned = next((arm.name.split("@", 1)[0] for arm in arms if arm.adapter is not None), None)
    if every is not None and section is not None:
        raise InputError(
            f"{name}: [finetune] with [engine] adapter would train on another model than it measures; merge that"
            " adapter into the model (`finetune merge`), or leave one out"
        )
    if every is not None and tuned is not None:
        raise InputError(
            f"{name}: [engine] adapter is under every arm, and [arms.{tuned}] has one of its own; give it to the arms"
            " that need it, and leave [engine] adapter out"
        )
    if section is None:
        return
    if not any(arm.adapter in section.adapters.values() for arm in arms):
        raise InputError(
            f'{name}: [finetune] trains adapters that no arm measures; give an arm adapter = "finetune", or leave the'
            " section out"
        )
    of = next(arm for arm in arms if arm.name == base)
    if section.episodes and not of.steered:
        raise InputError(
            f"{name}: [finetune] episodes are those of the base arm, and [arms.{base}] is not steered; steer it, or"
            " leave episodes out"
        )
    told = [key for key in ("system", "suffix", "prefix") if getattr(of, key) is not None]
    if told:
        raise InputError(
            f"{name}: [finetune] trains on the bare prompts, without a {told[0]}, and [arms.{base}] has one; put it"
            " into another arm"
        )
    if section.steering and (of.strength is not None or not of.steered):
        raise InputError(
            f"{name}: [finetune] steering takes the strengths that were calibrated for the base arm, and [arms.{base}]"
            " has its own; leave that out, or steering"
        )
