"""What makes a long run cheap gives what the plain way gives: keys, copies of settings, grades handed over in lots."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import studies_world as world
from countersteer.core.errors import InputError
from countersteer.core.request import Request, Sampling
from countersteer.core.trial import Attempt, Grade
from countersteer.store import Run
from countersteer.studies.generate import Generator
from countersteer.studies.steering import Steering

FACTS = {"dtype": "float32", "quantisation": None, "adapter": None, "template_hash": "th", "ignored": 1}
TEXTS = ("How?", 'a "quote" \\ and\nline', "\u00e9\u2028 \U0001f600", "\u0000")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("given", [{}, {"system": "Be brief."}, {"prefix": "Sure, "}, {"system": "S", "prefix": "P"}])
def test_a_trial_key_is_the_hash_of_one_sorted_json_object(tmp_path: Path, text: str, given: dict[str, str]) -> None:
    tools = world.tools(world.write_sae(tmp_path / "sae"))
    steering = Steering(tools.sae, layer=2, model="m", family="scripted-1", facts=FACTS)
    sampling = Sampling(temperature=0.7, top_p=1, repetition_penalty=1.1, seed=2**40, stop=("a", '"'))
    request = Request(prompt=text, sampling=sampling, **given)
    plain = {
        "model": "m", "engine": "scripted-1", "dtype": "float32", "quantisation": None, "adapter": None,
        "template_hash": "th", "prompt": text, "system": given.get("system"), "prefix": given.get("prefix"),
        "intervention": None,
        "sampling": {"temperature": 0.7, "top_p": 1, "top_k": 0, "repetition_penalty": 1.1, "seed": 2**40,
                     "max_tokens": 256, "stop": ["a", '"']},
    }  # fmt: skip
    written = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert steering.key(request) == hashlib.blake2b(written.encode(), digest_size=16).hexdigest()


def test_another_seed_is_a_copy_that_is_checked_where_it_must_be() -> None:
    sampling = Sampling(temperature=0.3, stop=("x",), max_tokens=9)
    assert sampling.with_seed(7) == replace(sampling, seed=7) and sampling.seed == 0
    with pytest.raises(InputError, match="seed must be a whole number"):
        sampling.with_seed(1.5)  # type: ignore[arg-type]


class Judge:
    """Grades by length and fails on one text, as a broken judge may."""

    name = key = "length"

    def grade(self, prompt: str, response: str, *, label: str | None = None) -> Grade:
        if response == "bad":
            raise InputError("cannot grade this")
        return Grade("ok", (Attempt(0, len(response), float(len(response))),), self.name)


def test_grades_handed_over_in_lots_reach_who_asked_and_a_failure_is_its_own(tmp_path: Path) -> None:
    texts = ["x" * n for n in range(1, 60)] + ["bad"] + ["y" * n for n in range(60, 90)]

    async def go(run: Run) -> list[Any]:
        generator = Generator(world.tools(world.write_sae(tmp_path / "sae")).engine, run, in_flight=4)
        generator.judged_by(Judge())
        try:
            return await asyncio.gather(*(generator.grade("p", None, t) for t in texts), return_exceptions=True)
        finally:
            generator.close()

    with Run.create(tmp_path / "run", "", {}) as run:
        grades = asyncio.run(go(run))
        for text, grade in zip(texts, grades, strict=True):
            if text == "bad":
                assert isinstance(grade, InputError)
            else:
                assert grade.attempts[0].score == len(text)
                assert run.grade("p", None, text, judge="length")["attempts"][0]["score"] == len(text)
        assert run.grade("p", None, "bad", judge="length") is None
