"""The Python examples of the README and the docs run as they stand, in order, page by page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from countersteer.studies.runner import run_study
from countersteer.studies.spec import parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path) -> list[str]:
    """The fenced Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


SMALL = """
[study]
model = "organism"
sae = "organism"
[latents]
count = 3
[calibration]
method = "bisection"
rounds = 2
[trials]
per_latent = 2
[sampling]
max_tokens = 60
[arms.base]
[arms.unsteered]
strength = 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the pages take for granted: a finished run in runs/demo, a study in study.toml."""
    place = tmp_path_factory.mktemp("docs")
    (place / "study.toml").write_text(SMALL, encoding="utf-8")
    run_study(parse(SMALL, name="study.toml"), place / "runs" / "demo").close()
    return place


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_examples_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "example"}
    for number, block in enumerate(blocks(page), start=1):
        exec(compile(block, f"{page.name} example {number}", "exec"), names)


def test_links_between_pages_hold() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
