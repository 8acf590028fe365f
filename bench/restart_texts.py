"""The labelled texts that the restart model is fitted on: answers as they are, and wordings put into answers."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHRASES = [ROOT / "bench" / "data" / name for name in ("restart_phrases.txt", "restart_words.txt")]
FICTION = ROOT / "bench" / "data" / "restart_fiction.txt"
_ASKING = re.compile(
    r"^(?:how (?:do|can|should|would|to|does|did)(?: i| you| we| one)?|what(?:'s| is| are| was| were)|explain|"
    r"describe|tell me about|give me|why (?:do|does|is|are|did)|who|when|where|can you|could you|please|should i|"
    r"write|summari[sz]e|is|are|does|do|list)\b\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Case:
    """A response with the offsets at which its restarts begin; `weight`: how much it counts in the fit."""

    prompt: str
    response: str
    boundaries: tuple[int, ...]
    weight: float
    source: str


def labelled(name: str) -> list[Case]:
    """The hand-labelled responses of a file in tests/data."""
    rows = [json.loads(line) for line in (ROOT / "tests" / "data" / name).read_text("utf-8").splitlines()]
    return [Case(r["prompt"], r["response"], tuple(r["boundaries"]), 1.0, name) for r in rows]


def _topic(prompt: str) -> str:
    return _ASKING.sub("", prompt.strip().rstrip("?.!")).strip()[:60] or prompt


def _word(text: str, rng: random.Random) -> str:
    """One of the longer words of a text."""
    words = re.findall(r"[a-zA-Z]{4,}", text) or ["that"]
    return rng.choice(sorted(words, key=len)[-4:]).lower()


def wordings() -> list[str]:
    """The lines of the wording files: "+ " restart language, "- " look-alikes."""
    lines = [line for path in PHRASES for line in path.read_text("utf-8").splitlines()]
    return [line for line in lines if line[:2] in ("+ ", "- ")]


def in_other_voices(*, rounds: int, seed: int = 1) -> list[Case]:
    """Restart wordings spoken inside stories, letters and scenes written on request: no restarts of the answer."""
    rng = random.Random(seed)
    lines = FICTION.read_text("utf-8").splitlines()[1:]
    requests = [(a[2:], b.split(" | ")) for a, b in zip(lines[::2], lines[1::2], strict=True)]
    phrases = [line[2:] for line in wordings() if line[0] == "+" and "{" not in line]
    made = []
    for prompt, story in requests:
        for phrase in rng.sample(phrases, 6 * rounds):
            if any(word in phrase.lower() for word in ("question", "asked", "topic", "above", "answer")):
                continue
            at = rng.randint(1, len(story) - 1)
            made.append(Case(prompt, " ".join([*story[:at], phrase, *story[at:]]), (), 0.4, "fiction"))
    return made


def _answers(cases: Sequence[Case]) -> list[tuple[str, list[str]]]:
    """Prompts with the sentences of an answer: the last attempt of each response."""
    found = []
    for case in cases:
        text = case.response[case.boundaries[-1] :] if case.boundaries else case.response
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", text) if len(s.split()) > 4]
        if case.boundaries:
            sentences = sentences[1:]
        if sentences and "```" not in text:
            found.append((case.prompt, sentences))
    return found


def composed(cases: Sequence[Case], *, rounds: int, seed: int = 0) -> list[Case]:
    """The wordings of the phrase file put into answers: off topic before, or on topic, whole or broken off."""
    rng = random.Random(seed)
    answers = _answers(cases)
    made = []
    for line in wordings() * rounds:
        positive, phrase = line[0] == "+", line[2:]
        (prompt, right), (other, wrong) = rng.choice(answers), rng.choice(answers)
        off = rng.random() < (0.65 if positive else 0.1)
        first = (wrong if off else right)[: rng.randint(1, 2)]
        phrase = phrase.replace("{topic}", _topic(prompt)).replace("{wrong}", _topic(other))
        phrase = phrase.replace("{word}", _word(" ".join(first), rng)).replace("{key}", _word(_topic(prompt), rng))
        if phrase[:1].islower() and line[2] == "{":
            phrase = phrase[0].upper() + phrase[1:]
        after = right[-rng.randint(1, 2) :]
        join = rng.choice([" ", " ", " ", "\n\n"])
        lead = " ".join(first)
        if positive and rng.random() < 0.3:
            words = lead.split()
            lead = " ".join(words[: rng.randint(max(3, len(words) // 2), max(4, len(words) - 2))]).rstrip(".,;:")
            join = rng.choice(["... ", " - ", " — ", "— ", "—", "… ", ", ", " ", " ", " "])
            if rng.random() < 0.6:
                phrase = phrase[0].lower() + phrase[1:] if not phrase.startswith(("I ", "I'", "EDIT")) else phrase
        elif positive and rng.random() < 0.1:
            phrase = phrase.lower().replace("'", "")
        if rng.random() < 0.15:
            phrase = phrase.replace("'", "\u2019")
        rest = " ".join(after)
        if phrase.endswith((":", ",")) and rng.random() < 0.5:
            rest = rest[0].lower() + rest[1:]
        response = f"{lead}{join}{phrase} {rest}"
        boundary = (len(lead) + len(join),) if positive else ()
        known = prompt if rng.random() < 0.8 else ""
        made.append(Case(known, response, boundary, 0.4, "phrases"))
    return made


def begun_otherwise(cases: Sequence[Case], *, seed: int = 0) -> list[Case]:
    """Each labelled answer with another text before its first restart, or before all of it if it has none."""
    rng = random.Random(seed)
    pool = [case.response for case in cases if not case.boundaries and len(case.response) > 80]
    made = []
    for case in cases:
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", rng.choice(pool)) if len(s.split()) > 4]
        if not sentences or not case.boundaries:
            continue
        lead, at = " ".join(sentences[: rng.randint(1, 2)]), case.boundaries[0]
        gap = re.search(r"\W*$", case.response[max(0, at - 3) : at])
        joint = (gap[0] if gap else "") or " "
        if joint.strip() or rng.random() < 0.3:
            lead = lead[: rng.randint(len(lead) // 2, len(lead))].rsplit(" ", 1)[0].rstrip(".,;:!?")
        moved = len(lead) + len(joint) - at
        response = lead + joint + case.response[at:]
        made.append(Case(case.prompt, response, tuple(b + moved for b in case.boundaries), 0.4, "begun otherwise"))
    return made
