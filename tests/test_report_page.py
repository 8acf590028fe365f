"""The page, the figures and the terminal text: complete, self-contained, and safe with whatever a model writes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from countersteer.report import figures, html, terminal
from countersteer.report.questions import questions
from countersteer.report.summary import summarise
from countersteer.report.transcripts import cut, examples
from countersteer.report.words import limits, number, warnings
from report_runs import RESTART, Planted, T, plant

EVIL = (
    '<script>alert(1)</script> </style><img src=x onerror="alert(2)"> & "quotes" {{ 7*7 }} ünïcödé 日本語 🙂'
    " \u202e reversed \x00 "
)
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def planted(text: str | None = None, model: str = "organism") -> Planted:
    base = [
        T(i, f"How {k}? {EVIL}" if text else f"How {k}?", (10.0 + i, 60.0) if (i + k) % 3 == 0 else (20.0 + 5 * k,),
          fresh=(30.0,) if (i + k) % 3 == 0 else (), text=f"{text} {i} {k}. " if text else None)
        for i in range(6) for k in range(4)
    ]  # fmt: skip
    calm = [T(t.latent, t.prompt, (90.0,), steered=False, text=f"calm {i}") for i, t in enumerate(base)]
    scaled = [T(t.latent, t.prompt, (50.0,), text=f"scaled {i}") for i, t in enumerate(base)]
    labels = {i: f"{text or 'tides'} {i}" for i in range(6)}
    settings = {"unsteered": {"steered": False, "strength": 0.0}, "sweep@0.5": {"strength_scale": 0.5},
                "sweep@2": {"strength_scale": 2.0}}  # fmt: skip
    arms = {"base": base, "unsteered": calm, "sweep@0.5": scaled, "sweep@2": scaled}
    return Planted(arms, settings, labels=labels, model=model)


def made(folder: Path, what: Planted) -> tuple[str, Page]:
    with plant(folder / "run", what) as run:
        html.write(run, summarise(run), folder / "report.html")
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.stack == []
    return text, page


def test_page_is_complete_and_needs_no_network(tmp_path: Path) -> None:
    text, page = made(tmp_path, planted())
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text.replace("</", "<"))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "embed", "img")]
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 11
    assert "default-src 'none'" in text
    for wanted in ("test animal", "In plain words", "Which arms differ from base?", "default", "given",
                   "resid_post.3: 9 of 20 tokens changed", "with uncommitted changes",
                   "Is correcting itself better"):  # fmt: skip
        assert wanted in page.text, wanted
    assert len(text) < 2_000_000


def test_page_escapes_everything_that_is_not_ours(tmp_path: Path) -> None:
    text, page = made(tmp_path, planted(EVIL, model=f"model {EVIL}"))
    assert "<script" not in text and "<img" not in text and 'onerror="' not in text
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in page.text and "49 ünïcödé" not in page.text
    assert "日本語 🙂" in page.text


def test_ids_are_unique_and_every_figure_has_a_name(tmp_path: Path) -> None:
    _, page = made(tmp_path, planted())
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(attrs.get("aria-label") and attrs.get("role") == "img" for tag, attrs in page.tags if tag == "svg")
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1 and all(b <= a + 1 for a, b in pairwise(headings))


def test_attempts_are_coloured_and_join_to_the_text(tmp_path: Path) -> None:
    with plant(tmp_path / "run", planted()) as run:
        shown = examples(run)
        trials = {t.plan.key: t for t in run.trials("base")}
    improving = [e for e in shown if e.arm == "base" and e.kind == "better"]
    assert len(improving) == 5 and len([e for e in shown if e.kind == "one attempt"]) == 2
    first = improving[0]
    assert "".join(piece.text for piece in first.pieces) == trials[first.key].text
    assert [piece.text for piece in first.pieces if piece.restart] == [RESTART.strip()]
    assert {piece.attempt for piece in first.pieces} == {1, 2} and first.receipt[0]["tokens_changed"] == 9


@pytest.mark.parametrize(
    "attempts",
    [
        [],
        [{"start": 0, "end": 4, "restart": None}],
        [{"start": 2, "end": 5, "restart": None}, {"start": 5, "end": 999, "restart": "xyz"}],
        [{"start": 0, "end": 8, "restart": None}, {"start": 3, "end": 6, "restart": ""}, {"start": 9, "end": 7}],
    ],
)
def test_cut_text_joins_whatever_the_offsets(attempts: list[dict[str, object]]) -> None:
    text = "abc ünï 🙂 def"
    assert "".join(piece.text for piece in cut(text, attempts)) == text


def test_page_of_a_run_with_nothing_yet(tmp_path: Path) -> None:
    from countersteer.store import Run

    with Run.create(tmp_path / "run", "", {}) as run:
        found = summarise(run)
        html.write(run, found, tmp_path / "report.html")
        words = terminal.render(found)
    page = Page()
    page.feed((tmp_path / "report.html").read_text())
    assert page.stack == [] and "There is nothing to draw yet." in page.text
    assert "no valid trial yet" in words and "not finished" in words


def test_terminal_says_the_numbers_and_the_caveat(tmp_path: Path) -> None:
    with plant(tmp_path / "run", planted()) as run:
        found = summarise(run)
    text = terminal.render(found, width=120, colour=False)
    assert "33.3% of 24 responses" in text and "test animal" in text and "\x1b" not in text
    assert re.search(r"base\s+24\s+24\s+\S+\s+33.3%\s+33.3%\s+100.0% /8", text)
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "\x1b[" in terminal.render(found, width=120, colour=True)
    other = planted(model="acme/model")
    with plant(tmp_path / "other", other) as run:
        assert "test animal" not in terminal.render(summarise(run))


def test_terminal_does_not_read_markup_in_names(tmp_path: Path) -> None:
    with plant(tmp_path / "run", Planted({"base": [T(1, "p", (1.0,))]}, model="[red]m[/nope]")) as run:
        assert "[red]m[/nope]" in terminal.render(summarise(run), colour=False)


def test_answers_say_what_the_numbers_say(tmp_path: Path) -> None:
    with plant(tmp_path / "run", planted()) as run:
        said = {a.question: a.text for a in questions(summarise(run))}
    assert said["Does the model correct itself while it is steered?"].startswith("Yes.")
    assert "too few to say" in said["Are its second attempts better than simply trying again?"]
    assert "6 of 6 latents" in said["Is the steering as strong as intended?"]
    never = Planted({"base": [T(i, f"p{k}", (10.0,)) for i in range(5) for k in range(3)]})
    with plant(tmp_path / "never", never) as run:
        found = summarise(run)
    said = {a.question: a.text for a in questions(found)}
    assert said["Does the model correct itself while it is steered?"].startswith("It was not seen.")
    assert any("Only 5 latents" in text for text in warnings(found))


def test_numbers_in_words() -> None:
    assert number("esr", 0.0) == "0.0%" and number("esr", 0.0012) == "0.12%" and number("esr", None) == "–"
    assert number("esr", -0.05, sign=True) == "−5.0 points" and number("first_attempt", 30.04) == "30.0"
    assert limits("multi_attempt", [None, 0.5]) == "[−∞, 50.0]" and limits("first_attempt", None) == ""
    assert limits("esr", [-0.0, 0.004]) == "[0.0, 0.40]"


def test_readme_figure_is_an_svg_document(tmp_path: Path) -> None:
    with plant(tmp_path / "run", planted()) as run:
        figures.readme_figure(run, summarise(run), tmp_path / "docs" / "img" / "demo.svg")
    text = (tmp_path / "docs" / "img" / "demo.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "currentColor" not in text
    assert "test animal" in "".join(root.itertext())
