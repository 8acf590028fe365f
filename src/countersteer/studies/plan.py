"""The deterministic plan of a study: which trial runs in which arm, with which prompt, strength and seed.

Every draw comes from the study's seed by name, so two runs of one study plan the same trials, and an arm replays the
base arm's (latent, strength, prompt, seed).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from countersteer.core.fingerprint import fingerprint, rng
from countersteer.store import Run, RunRefusedError
from countersteer.store.rows import LatentRow, Planned, Reference, Resample
from countersteer.studies.arms import Arm
from countersteer.studies.inputs import Inputs
from countersteer.studies.spec import Spec
from countersteer.studies.steering import Steering, sampling_seed


def prompts_for(spec: Spec, latent: int, count: int) -> tuple[int, ...]:
    """Indices of the prompts a latent is tried on, drawn without replacement."""
    return _drawn(spec.settings.study.seed, latent, count, spec.settings.trials.per_latent)


@lru_cache(4096)
def _drawn(seed: int, latent: int, count: int, wanted: int) -> tuple[int, ...]:
    """The draw, which every arm repeats."""
    return tuple(int(i) for i in rng(seed, "prompts", latent).permutation(count)[:wanted])


def references(spec: Spec, prompts: Sequence[str], steering: Steering) -> Iterator[Reference]:
    """The unsteered responses that the judge scores against."""
    ordinal = 0
    for prompt in prompts:
        for number in range(spec.settings.judge.references):
            seed = sampling_seed(spec.settings.study.seed, "reference", prompt, number)
            yield Reference(ordinal, prompt, seed, steering.key(steering.plain(prompt, spec.sampling, seed)))
            ordinal += 1


def numbers(sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Ordinals of trials by (rank of the latent, which of its prompts), for a study that had these `sizes` in turn.

    Each size is (latents, prompts per latent). What a study grew by is numbered after all that was there, so that a
    trial keeps its number, and equal numbers of two arms stay the same trial.
    """
    found: dict[tuple[int, int], int] = {}
    for latents, per_latent in sizes:
        for rank in range(latents):
            for which in range(per_latent):
                found.setdefault((rank, which), len(found))
    return found


def trials(
    spec: Spec, arm: Arm, latents: Sequence[LatentRow], prompts: Sequence[str], steering: Steering, *,
    prefixes: Mapping[tuple[int, str, int], str] | None = None, numbered: Mapping[tuple[int, int], int] | None = None,
) -> Iterator[Planned]:  # fmt: skip
    """Every trial of an arm. A latent without a strength gives trials with the status "uncalibrated".

    `prefixes`: by (latent, prompt, seed), taken from another arm; trials without one are left out. `numbered`: their
    ordinals (`numbers`), in this order unless given.
    """
    per_latent = spec.settings.trials.per_latent
    numbered = numbers([(len(latents), per_latent)]) if numbered is None else numbered
    for rank, row in enumerate(latents):
        for which, index in enumerate(prompts_for(spec, row.latent, len(prompts))):
            prompt, ordinal = prompts[index], numbered[rank, which]
            seed = sampling_seed(spec.settings.study.seed, row.latent, prompt)
            if prefixes is None:
                yield _trial(arm, ordinal, row, prompt, seed, steering, arm.text("prefix", row.label))
            elif (row.latent, prompt, seed) in prefixes:
                yield _trial(arm, ordinal, row, prompt, seed, steering, prefixes[row.latent, prompt, seed])


def _trial(
    arm: Arm, ordinal: int, row: LatentRow, prompt: str, seed: int, steering: Steering, prefix: str | None
) -> Planned:
    strength = arm.strength_for(row.strength, unit=row.unit or 1.0)
    missing = None if strength is not None else "uncalibrated"
    plan = Planned(
        arm.name,
        ordinal,
        "",
        row.latent,
        row.label,
        strength,
        prompt,
        arm.user_turn(prompt, row.label),
        arm.text("system", row.label),
        prefix,
        seed,
        missing,
    )
    if missing:
        return replace(plan, key=fingerprint([missing, arm.name, row.latent, prompt, seed]))
    return replace(plan, key=steering.key(steering.request(arm, plan)))


def missing(run: Run, arm: Arm, trials: Sequence[Planned]) -> list[Planned]:
    """Those of an arm's trials that are not planned in a run yet.

    Raises RunRefusedError if one that is there would be another now; where an arm takes its prefixes from other
    responses, what was planned stays.
    """
    there = {trial.ordinal: trial for trial in run.planned(arm.name)}
    for trial in trials:
        known = there.get(trial.ordinal, trial)
        if known != trial and arm.prefix_rule is None:
            raise RunRefusedError(
                f"{run.folder}: trial {trial.ordinal} of arm {arm.name} would not be what it was; the run was made by"
                " another version or with other files, start a new run in another folder"
            )
    return [trial for trial in trials if trial.ordinal not in there]


def fresh(spec: Spec, arm: Arm, plan: Planned, steering: Steering) -> list[tuple[Resample, Planned]]:
    """The fresh first attempts of a multi-attempt trial: the same trial under new seeds."""
    draws = []
    for draw in range(spec.settings.trials.resample):
        seed = sampling_seed(spec.settings.study.seed, "resample", plan.latent, plan.prompt, draw)
        again = replace(plan, seed=seed)
        again = replace(again, key=steering.key(steering.request(arm, again)))
        draws.append((Resample(plan.arm, plan.ordinal, draw, again.key, seed), again))
    return draws


def estimate(spec: Spec, inputs: Inputs) -> dict[str, Any]:
    """What a study costs before it starts: generations per stage and upper bounds of generated tokens.

    Resamples are drawn for multi-attempt trials only; their number is the bound for a rate of 100%.
    """
    settings = spec.settings
    latents = len(settings.latents.ids) if settings.latents.ids is not None else settings.latents.count
    each = latents * settings.trials.per_latent
    per_latent = calibration_size(spec)
    stages = {
        "references": len(inputs.all_prompts) * settings.judge.references if settings.judge.offline else 0,
        "calibration": per_latent * latents,
        **{
            f"calibration {arm.name}": calibration_size(spec, own=True) * latents
            for arm in spec.arms
            if arm.own_strengths
        },
        **{f"trials {arm.name}": each for arm in spec.arms},
    }
    steered = sum(arm.steered for arm in spec.arms)
    stages["resamples (at most)"] = steered * each * settings.trials.resample
    longest = {f"trials {arm.name}": arm.sampling.max_tokens for arm in spec.arms}
    longest["references"] = settings.sampling.max_tokens
    tokens = {name: n * longest.get(name, calibration_tokens(spec)) for name, n in stages.items()}
    fresh = sum(arm.sampling.max_tokens for arm in spec.arms if arm.steered)
    tokens["resamples (at most)"] = each * settings.trials.resample * fresh
    certain = sum(n for name, n in stages.items() if not name.startswith("resamples"))
    return {
        "latents": latents,
        "prompts": len(inputs.prompts),
        "per_latent": settings.trials.per_latent,
        "trials_per_arm": each,
        "arms": [arm.name for arm in spec.arms],
        "generations": stages,
        "generations_certain": certain,
        "tokens": tokens,
        "tokens_at_most": sum(tokens.values()),
    }


def calibration_tokens(spec: Spec) -> int:
    """Tokens of a calibration response: the paper's 256 unless given, never more than the trials'."""
    return spec.settings.calibration.max_tokens or min(256, spec.settings.sampling.max_tokens)


def calibration_size(spec: Spec, *, own: bool = False) -> int:
    """Generations per latent that the calibration takes (`own`: of an arm that has its own)."""
    if not own and not spec.needs_calibration:
        return 0
    section = spec.settings.calibration
    if section.method == "bisection":
        return (section.rounds or 10) * (section.per_round or 5)
    from countersteer.statistics.calibration.pooled import FIRST, ROUNDS

    return FIRST + sum(ROUNDS)
