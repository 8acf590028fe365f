"""Boundaries of episodes as a language model marks them (rubric "episodes"), kept in the run and used by its traces.

Only episodes are asked about: responses of two attempts of which the second is better. A marking is kept as a grade
under a key of its own, three stretches without scores: off topic, correcting, on topic again. ESR paper 1.7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import rng
from countersteer.core.trial import OK, Attempt, Grade
from countersteer.judging.llm_settings import JudgeSettings
from countersteer.store import Run
from countersteer.studies.episodes import Episode, episodes
from countersteer.studies.generate import bounded
from countersteer.studies.judges import JudgeOptions, LanguageJudge, Spent, quiet
from countersteer.studies.rejudge import judge_named

PLACES = ("off_topic", "correction", "on_topic")


async def mark_episodes(
    run: Run, judge: str, *, size: int, options: JudgeOptions | None = None, seed: int = 0,
    progress: Callable[[int, int], None] | None = None, base_url: str | None = None, spent: Spent | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Have a language model mark the boundaries of at most `size` episodes of a run; traces use them from then on.

    Returns {"judge", "key", "sampled", "marked", "statuses", "distance"}: the median distance, in characters, from the
    boundaries that the attempts give. Raises InputError for the offline judge, and for a run without an episode.
    """
    if judge == "offline":
        raise InputError("the offline judge's attempts are an episode's boundaries already; name a language model")
    JudgeSettings(judge, base_url=base_url)
    found = episodes(run.trials())
    if not found:
        raise InputError(f"{run.folder} has no response of two attempts of which the second is better")
    chosen = [found[i] for i in sorted(rng(seed, "episodes").permutation(len(found))[:size])]
    language = LanguageJudge(judge_named(judge, base_url=base_url), options or JudgeOptions(), run, spent or quiet)
    try:
        from countersteer.judging.llm import LLMRater

        rater = LLMRater(language.caller, "episodes")
        done = 0

        async def one(episode: Episode) -> None:
            nonlocal done
            plan, text = episode.trial.plan, episode.trial.text
            if run.grade(plan.prompt, plan.label, text, judge=rater.key) is None:
                rating = await rater.rate(prompt=plan.prompt, response=text, label=plan.label)
                run.add_grade(plan.prompt, plan.label, text, _grade(rating, len(text)), judge=rater.key)
            done += 1
            if progress:
                progress(done, len(chosen))

        await bounded(chosen, one, workers=language.workers)
    finally:
        await language.close()
    judges = [j for j in run.fact("episode_judges", []) if j["key"] != rater.key]
    run.set_facts(episode_judges=[*judges, {"name": rater.name, "key": rater.key}])
    marks = [_marks(run, episode, rater.key) for episode in chosen]
    both = [(episode, mark) for episode, mark in zip(chosen, marks, strict=True) if mark is not None]
    apart = [[abs(a - b) for a, b in zip((e.off, e.correction, e.on), mark, strict=True)] for e, mark in both]
    return {
        "judge": rater.name,
        "key": rater.key,
        "sampled": len(chosen),
        "marked": len(both),
        "statuses": _statuses(run, chosen, rater.key),
        "distance": {n: float(median(row[i] for row in apart)) if apart else None for i, n in enumerate(PLACES)},
    }


def _grade(rating: Any, length: int) -> Grade:
    """A marking as a grade: three stretches, or why there are none."""
    if rating.value is None:
        return Grade(rating.status, (), rating.judge, rating.reason)
    places = [getattr(rating.value, name) for name in PLACES]
    if None in places:
        missing = ", ".join(name for name, place in zip(PLACES, places, strict=True) if place is None)
        return Grade("no-attempt", (), rating.judge, f"the judge found no {missing}")
    stretches = zip(places, [*places[1:], length], strict=True)
    return Grade(OK, tuple(Attempt(start, end) for start, end in stretches), rating.judge)


def _marks(run: Run, episode: Episode, key: str) -> tuple[int, int, int] | None:
    plan = episode.trial.plan
    found = run.grade(plan.prompt, plan.label, episode.trial.text, judge=key)
    if found is None or found["status"] != OK:
        return None
    off, correction, on = (int(part["start"]) for part in found["attempts"])
    return off, correction, on


def _statuses(run: Run, chosen: Sequence[Episode], key: str) -> dict[str, int]:
    counted: dict[str, int] = {}
    for episode in chosen:
        plan = episode.trial.plan
        status = str((run.grade(plan.prompt, plan.label, episode.trial.text, judge=key) or {}).get("status"))
        counted[status] = counted.get(status, 0) + 1
    return dict(sorted(counted.items()))


def marked(run: Run, found: Sequence[Episode]) -> tuple[list[Episode], str | None, int]:
    """Episodes with the boundaries that the last judge asked marked; its name, and how many episodes it marked."""
    judges = run.fact("episode_judges", [])
    if not judges:
        return list(found), None, 0
    out, count = [], 0
    for episode in found:
        mark = _marks(run, episode, str(judges[-1]["key"]))
        count += mark is not None
        out.append(episode if mark is None else Episode(episode.trial, *mark))
    return out, str(judges[-1]["name"]), count
