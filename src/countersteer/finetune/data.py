"""Making a data set: which sources, how many of each, which prompts. The model's own answers are generated here.

Corrections come from templates, from the model's own steered episodes in runs, and from a language model, in equal
parts; where a source gives fewer than its part, the others fill up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from countersteer import __version__
from countersteer.core.errors import InputError
from countersteer.core.request import Request, Sampling
from countersteer.finetune.answers import Kept, each_prompt, normal_examples, own_answers
from countersteer.finetune.compose import normal
from countersteer.finetune.encode import Encoder
from countersteer.finetune.examples import Dataset, Example, require_new, save
from countersteer.finetune.own_episodes import from_run, require_usable
from countersteer.finetune.templates import from_templates, templates
from countersteer.store.errors import one_line
from countersteer.store.lock import FolderLock

log = logging.getLogger(__name__)
CORRECTIONS, NORMALS = 918, 760
"""The paper's numbers of examples."""
MAX_TOKENS = 512
"""The paper's longest response."""


class Writer(Protocol):
    """A language model that writes corrections (`llm_writer.LlmWriter`)."""

    def __call__(self, prompts: Sequence[str], count: int, answers: Mapping[str, Sequence[str]]) -> list[Example]:
        """At most `count` corrections for the prompts, ending in the model's own answers where there are any."""
        ...

    def described(self) -> dict[str, Any]:
        """Plain facts for the data's header."""
        ...


@dataclass(frozen=True)
class Sources:
    """Where corrections come from: `templates` (a name, or None), steered `runs`, and a `writer`.

    With runs, templates also give the acknowledgements; `words` names them where templates themselves are not a source.
    """

    templates: str | None = "general"
    runs: tuple[Path, ...] = ()
    writer: Writer | None = None
    words: str = "general"

    def __post_init__(self) -> None:
        if self.templates is None and not self.runs and self.writer is None:
            raise InputError("corrections need a source: templates, a steered run, or a language model")


def make(
    engine: Any, *, train: Sequence[str], held_out: Sequence[str], sources: Sources, corrections: int = CORRECTIONS,
    normals: int = NORMALS, seed: int = 0, overlap: bool = False, sampling: Sampling | None = None,
    stage: Callable[[str, int | None], None] | None = None, progress: Callable[[int, int], None] | None = None,
    keep: Path | None = None, out: Path | None = None, facts: Mapping[str, Any] | None = None,
) -> Dataset:  # fmt: skip
    """A data set for the engine's model. Raises InputError for an overlapping split or an empty class.

    `sampling`: of the model's own answers (default: temperature 0.6 and 512 tokens, or as many as fit). `keep`: a file
    for answers while they come, so that an interrupted call asks only for the rest; removed in the end; RunRefusedError
    while another call works with it. `out`: the folder to save the data in, before the kept answers are removed.
    `facts`: more for the data's header. RefusedError for answers that the model's chat template does not keep, when the
    first of them is there.
    """
    if out is not None:
        require_new(out)
    with nullcontext() if keep is None else _alone(keep):
        made = _make(
            engine, train=train, held_out=held_out, sources=sources, corrections=corrections, normals=normals,
            seed=seed, overlap=overlap, sampling=sampling, stage=stage, progress=progress, keep=keep,
        )  # fmt: skip
        made = replace(made, facts={**made.facts, **(facts or {})})
        if out is not None:
            save(made, out)
        if keep is not None:
            keep.unlink(missing_ok=True)
    return made


@contextmanager
def _alone(keep: Path) -> Iterator[None]:
    """Hold a file of kept answers for this call. Raises RunRefusedError while another call holds it."""
    place = keep.with_name(keep.name + ".lock")
    with one_line(place, "make"):
        place.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(place)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.path.unlink()
            place.rmdir()
        lock.release()


def _make(
    engine: Any, *, train: Sequence[str], held_out: Sequence[str], sources: Sources, corrections: int, normals: int,
    seed: int, overlap: bool, sampling: Sampling | None, stage: Callable[[str, int | None], None] | None,
    progress: Callable[[int, int], None] | None, keep: Path | None,
) -> Dataset:  # fmt: skip
    if corrections < 0 or normals < 0 or not corrections + normals:
        raise InputError(f"numbers of examples must be >= 0 and not both 0, got {corrections} and {normals}")
    Dataset((), tuple(train), tuple(held_out), overlap=overlap)  # refuses an overlap before anything is generated
    if corrections and (sources.templates is not None or sources.runs):
        require_words(sources.templates or sources.words, train)
    for run in sources.runs:
        require_usable(run, model=engine.model_fingerprint)
    sampling = sampling or _sampling(engine, train)
    encode = _encoder(engine)
    each = each_prompt(normals, train)
    if stage is not None:
        stage("answers", each * len(train))
    answers = own_answers(
        engine, train, each=each, seed=seed, sampling=sampling, progress=progress,
        kept=None if keep is None else Kept(keep, engine),
        check=None if encode is None else partial(_keeps, encode),
    )  # fmt: skip
    if stage is not None:
        stage("corrections", None)
    made = _corrections(engine, train, answers, sources, corrections, seed, encode) if corrections else []
    described = engine.describe()
    facts = {
        "countersteer": __version__, "model_fingerprint": engine.model_fingerprint, "seed": seed,
        "sampling": plain(sampling), "template": described.get("template"),
        "template_hash": described.get("template_hash"), "tokenizer_hash": described.get("tokenizer"),
        **({"date": described["date"]} if described.get("date") else {}),
        "sources": {"templates": sources.templates, "runs": [str(run) for run in sources.runs],
                    "language_model": None if sources.writer is None else sources.writer.described()},
    }  # fmt: skip
    examples = (*made, *normal_examples(answers, count=normals, seed=seed))
    if encode is not None:
        for example in examples:
            encode(example)
    return Dataset(examples, tuple(train), tuple(held_out), facts, overlap)


def require_words(name: str, prompts: Sequence[str]) -> None:
    """Raise InputError for templates that do not exist, or do not know what one of the prompts asks."""
    which = templates(name)
    for prompt in prompts:
        which.acknowledgement(prompt, np.random.default_rng(0))


def plain(sampling: Sampling) -> dict[str, Any]:
    """A sampling as a file keeps it, without its seed, which every answer has its own of."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(sampling).items() if k != "seed"}


def _sampling(engine: Any, prompts: Sequence[str]) -> Sampling:
    """The paper's sampling, with as many tokens as the model has room for after the longest prompt."""
    room, limit = MAX_TOKENS, getattr(getattr(engine, "model", None), "max_positions", None)
    if isinstance(limit, int) and prompts:
        room = limit - max(len(engine.encode(Request(prompt=prompt))) for prompt in prompts) + 1
    if room < 1:
        raise InputError(f"a prompt leaves no room for an answer: the model has {limit} positions")
    return Sampling(temperature=0.6, max_tokens=min(MAX_TOKENS, room))


def _keeps(encode: Encoder, prompt: str, answer: str) -> None:
    """Raise RefusedError unless an answer can be trained on."""
    encode(normal(prompt, answer, source="own answers"))


def _encoder(engine: Any) -> Encoder | None:
    """What checks that an example can be trained on with the engine's tokenizer; None for an engine without one."""
    tokenizer = getattr(engine, "tokenizer", None)
    if tokenizer is None:
        return None
    facts = engine.describe()
    return Encoder(tokenizer, template=facts.get("template"), date=facts.get("date"))


def _corrections(
    engine: Any, prompts: Sequence[str], answers: Mapping[str, Sequence[str]], sources: Sources, count: int, seed: int,
    encode: Encoder | None,
) -> list[Example]:  # fmt: skip
    """Corrections in equal parts; templates and the writer fill up what runs cannot give."""
    words = templates(sources.templates or sources.words)
    parts = len(sources.runs) + (sources.templates is not None) + (sources.writer is not None)
    share = -(-count // parts)
    out: list[Example] = []
    for run in sources.runs:
        found = from_run(
            run, prompts, answers, words, count=min(share, count - len(out)), seed=seed,
            model=engine.model_fingerprint, check=encode, required=parts == 1,
        )  # fmt: skip
        if len(found) < share:
            log.warning("%s gives %d of %d corrections; it has no more off-topic responses", run, len(found), share)
        out += found
    if sources.writer is not None and len(out) < count:
        left = count - len(out)
        out += sources.writer(prompts, left if sources.templates is None else min(share, left), answers)
    if sources.templates is not None and len(out) < count:
        out += from_templates(words, prompts, answers, count=count - len(out), seed=seed)
    return out
