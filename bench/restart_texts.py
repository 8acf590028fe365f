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
DRIFT, ANSWERS, SALAD = "restarts_train_12.jsonl", "restarts_train_13.jsonl", "restarts_steered.jsonl"
"""Files of labelled answers: most leave their subject for another; most are long ones of assistants; word salad."""
_ASKING = re.compile(
    r"^(?:how (?:do|can|should|would|to|does|did)(?: i| you| we| one)?|what(?:'s| is| are| was| were)|explain|"
    r"describe|tell me about|give me|why (?:do|does|is|are|did)|who|when|where|can you|could you|please|should i|"
    r"write|summari[sz]e|is|are|does|do|list)\b\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Case:
    """A response with the offsets at which its restarts begin, and their language ends where that is known.

    `weight`: how much it counts in the fit.
    """

    prompt: str
    response: str
    boundaries: tuple[int, ...]
    weight: float
    source: str
    ends: tuple[int, ...] = ()


def labelled(name: str) -> list[Case]:
    """The hand-labelled responses of a file in tests/data."""
    rows = [json.loads(line) for line in (ROOT / "tests" / "data" / name).read_text("utf-8").splitlines()]
    return [Case(r["prompt"], r["response"], tuple(r["boundaries"]), 1.0, name, tuple(r.get("ends", ()))) for r in rows]


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


def in_other_voices(*, seed: int = 1) -> list[Case]:
    """Restart wordings spoken inside stories, letters and scenes written on request: no restarts of the answer."""
    rng = random.Random(seed)
    lines = FICTION.read_text("utf-8").splitlines()[1:]
    requests = [(a[2:], b.split(" | ")) for a, b in zip(lines[::2], lines[1::2], strict=True)]
    phrases = [line[2:] for line in wordings() if line[0] == "+" and "{" not in line]
    made = []
    for prompt, story in requests:
        for phrase in rng.sample(phrases, 6):
            if any(word in phrase.lower() for word in ("question", "asked", "topic", "above", "answer")):
                continue
            at = rng.randint(1, len(story) - 1)
            made.append(Case(prompt, " ".join([*story[:at], phrase, *story[at:]]), (), 0.4, "fiction"))
    return made


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+", text) if len(s.split()) > 4]


def passages() -> list[str]:
    """Off-topic passages, as a model writes them that is pushed to a subject: what stands before its restarts."""
    return [case.response[: case.boundaries[0]].strip() for case in labelled(DRIFT) if case.boundaries]


def ordinary() -> list[Case]:
    """Long ordinary answers without any restart."""
    return [case for case in labelled(ANSWERS) if not case.boundaries]


def _answers(cases: Sequence[Case]) -> list[tuple[str, list[str]]]:
    """Prompts with the sentences of an answer: the last attempt of each response."""
    found = []
    for case in cases:
        text = case.response[case.boundaries[-1] :] if case.boundaries else case.response
        sentences = _sentences(text)
        if case.boundaries:
            sentences = sentences[1:]
        if sentences and "```" not in text:
            found.append((case.prompt, sentences))
    return found


def _broken_off(lead: str, phrase: str, rng: random.Random) -> tuple[str, str, str]:
    """A lead cut in mid-sentence, what joins it to restart language, and that language as it goes on there."""
    words = lead.split()
    lead = " ".join(words[: rng.randint(max(3, len(words) // 2), max(4, len(words) - 2))]).rstrip(".,;:")
    join = rng.choice(["... ", " - ", " — ", "— ", "—", "… ", ", ", ", ", " ", " ", " "])
    if rng.random() < 0.6 and not phrase.startswith(("I ", "I'", "EDIT")):
        phrase = phrase[0].lower() + phrase[1:]
    return lead, join, phrase


def composed(cases: Sequence[Case], *, seed: int = 0) -> list[Case]:
    """The wordings put into answers: behind a drift, or on topic, whole or broken off; look-alikes within answers."""
    rng = random.Random(seed)
    answers, drift = _answers([*cases, *ordinary()]), passages()
    made = []
    for line in wordings():
        positive, phrase = line[0] == "+", line[2:]
        (prompt, right), (other, wrong) = rng.choice(answers), rng.choice(answers)
        off = rng.random() < (0.65 if positive else 0.2)
        if off and rng.random() < 0.6:
            wrong = _sentences(rng.choice(drift))
        first = (wrong if off else right)[: rng.choice([1, 1, 2, 2, 3, 4, 6])]
        phrase = phrase.replace("{topic}", _topic(prompt)).replace("{wrong}", _topic(other))
        phrase = phrase.replace("{word}", _word(" ".join(first), rng)).replace("{key}", _word(_topic(prompt), rng))
        if phrase[:1].islower() and line[2] == "{":
            phrase = phrase[0].upper() + phrase[1:]
        lead, join = " ".join(first), rng.choice([" ", " ", " ", "\n\n"])
        if positive and rng.random() < 0.3:
            lead, join, phrase = _broken_off(lead, phrase, rng)
        elif positive and rng.random() < 0.1:
            phrase = phrase.lower().replace("'", "")
        if rng.random() < 0.15:
            phrase = phrase.replace("'", "\u2019")
        rest = " ".join(right[-rng.choice([1, 2, 3, 5]) :])
        if phrase.endswith((":", ",")) and rng.random() < 0.5:
            rest = rest[0].lower() + rest[1:]
        at = len(lead) + len(join)
        boundary, end = ((at,), (at + len(phrase),)) if positive else ((), ())
        known = prompt if rng.random() < 0.8 else ""
        made.append(Case(known, f"{lead}{join}{phrase} {rest}", boundary, 0.4, "phrases", end))
    return made


def drifted(cases: Sequence[Case], *, seed: int = 0) -> list[Case]:
    """Answers that leave their prompt, or never meet it, and do not say so: no restarts, however far they drift."""
    rng = random.Random(seed)
    calm = [case for case in cases if not case.boundaries and len(case.response) > 60]
    drift = passages()
    made = [Case(rng.choice(calm).prompt, text, (), 0.4, "drift") for text in drift]
    for case in calm:
        other = rng.choice(calm)
        made.append(Case(other.prompt, case.response, (), 0.3, "another prompt"))
        first = _sentences(case.response)
        second = _sentences(rng.choice(drift) if rng.random() < 0.6 else other.response)
        if not first or not second or "```" in case.response + other.response:
            continue
        a, b = first[: rng.randint(0, 3)], second[: rng.randint(1, 6)]
        parts = [*a, *b, *first[len(a) :]] if rng.random() < 0.6 else [*a, *b]
        asked = rng.choice([case.prompt, case.prompt, case.prompt, other.prompt, ""])
        made.append(Case(asked, rng.choice([" ", " ", "\n\n"]).join(parts), (), 0.3, "drift"))
    return made


def begun_otherwise(cases: Sequence[Case], *, seed: int = 0) -> list[Case]:
    """Each labelled answer with another text, often a long one, before its first restart."""
    rng = random.Random(seed)
    pool = [case.response for case in cases if not case.boundaries and len(case.response) > 80]
    drift = passages()
    made = []
    for case in cases:
        sentences = _sentences(rng.choice(drift if rng.random() < 0.6 else pool))
        if not sentences or not case.boundaries:
            continue
        lead, at = " ".join(sentences[: rng.randint(1, 6)]), case.boundaries[0]
        gap = re.search(r"\W*$", case.response[max(0, at - 3) : at])
        joint = (gap[0] if gap else "") or " "
        if joint.strip() or rng.random() < 0.3:
            lead = lead[: rng.randint(len(lead) // 2, len(lead))].rsplit(" ", 1)[0].rstrip(".,;:!?")
        moved = len(lead) + len(joint) - at
        response = lead + joint + case.response[at:]
        made.append(Case(case.prompt, response, tuple(b + moved for b in case.boundaries), 0.4, "begun otherwise"))
    return made


def _shuffled(text: str, rng: random.Random) -> str:
    """A text of which a run of words, or all, is in random order, or said over and over."""
    words = text.split()
    size = rng.choice([6, 12, 25, len(words)])
    at = rng.randint(0, max(0, len(words) - size))
    part = words[at : at + size]
    rng.shuffle(part)
    if rng.random() < 0.25:
        part = (part[: rng.randint(1, 4)] * 12)[: len(part)]
    return " ".join([*words[:at], *part, *words[at + size :]])


def babbled(cases: Sequence[Case], *, seed: int = 0) -> list[Case]:
    """Word salad: no restart by itself, however odd its words; and with restart wordings in it, which are restarts."""
    rng = random.Random(seed)
    salad = labelled(SALAD)
    calm = [case for case in cases if not case.boundaries and len(case.response) > 60 and "```" not in case.response]
    made = [Case(case.prompt, _shuffled(case.response, rng), (), 0.3, "shuffled") for case in calm]
    phrases = [line[2:] for line in wordings() if line[0] == "+" and "{" not in line]
    for phrase in rng.sample(phrases, len(phrases) // 2):
        first, second = rng.choice(salad), rng.choice(salad)
        lead = first.response if rng.random() < 0.6 else _shuffled(rng.choice(calm).response, rng)
        words = lead.split()
        lead = " ".join(words[: rng.randint(min(4, len(words)), min(60, len(words)))])
        rest = second.response if rng.random() < 0.5 else _shuffled(rng.choice(calm).response, rng)
        if rng.random() < 0.5 and lead[-1:].isalnum():
            lead += "."
        at = len(lead) + 1
        known = rng.choice([first.prompt, second.prompt, ""])
        made.append(Case(known, f"{lead} {phrase} {rest}", (at,), 0.4, "in salad", (at + len(phrase),)))
    return made
