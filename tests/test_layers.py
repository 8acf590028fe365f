"""Imports go down only, torch stays out of what must start at once, and the public names are what is documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import countersteer

SOURCE = Path(countersteer.__file__).parent
BELOW: dict[str, set[str]] = {
    "core": set(),
    "edits": {"core"},
    "statistics": {"core"},
    "organism": {"core"},
    "sources": {"core", "edits", "organism"},
    "engines": {"core", "edits", "organism", "sources"},
    "judging": {"core"},
    "store": {"core"},
    "studies": {"core", "edits", "statistics", "organism", "sources", "engines", "judging", "store"},
    "finetune": {"core", "edits", "statistics", "organism", "sources", "engines", "judging", "store", "studies"},
    "report": {"core", "statistics", "judging", "store"},
    "serving": {"core", "edits", "engines"},
    "defence": {"core", "edits", "statistics", "organism", "sources", "engines", "judging", "store", "report"},
    "cli": {
        "core",
        "edits",
        "statistics",
        "organism",
        "sources",
        "engines",
        "judging",
        "store",
        "studies",
        "report",
        "finetune",
        "serving",
        "defence",
    },
}
"""Which layers each layer may import. The organism's paths and prompts are data that need no torch."""
NO_TORCH = ("core", "statistics", "judging", "store", "report", "cli")
MODULES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE)


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports, relative ones resolved; TYPE_CHECKING blocks left out."""
    package = [SOURCE.name, *path.relative_to(SOURCE).parts[:-1]]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if top_level_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                name = ".".join([*base, *([child.module] if child.module else [])])
                found.add(name)
                found.update(f"{name}.{alias.name}" for alias in child.names)
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def layer(module: str) -> str | None:
    """The layer of a module of ours: countersteer.LAYER..."""
    parts = module.split(".")
    return parts[1] if parts[0] == SOURCE.name and len(parts) > 1 else None


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down_only(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0]
    assert own in BELOW, f"a new layer {own}: say what it may import"
    others = {layer(name) for name in imported(path)} - {None, own}
    others = {name for name in others if name is not None and (SOURCE / name).is_dir()}
    assert others <= BELOW[own], f"{own} must not import {sorted(others - BELOW[own])}"


def test_the_layers_have_no_cycle() -> None:
    order: list[str] = []
    while len(order) < len(BELOW):
        free = [name for name in BELOW if name not in order and BELOW[name] <= set(order)]
        assert free, f"a cycle among {sorted(set(BELOW) - set(order))}"
        order += free


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(SOURCE).parts[0] in NO_TORCH],
                         ids=lambda p: str(p.relative_to(SOURCE)))  # fmt: skip
def test_no_torch_at_module_level(path: Path) -> None:
    names = {name.split(".")[0] for name in imported(path, top_level_only=True)}
    assert not names & {"torch", "transformers"}


def test_importing_the_light_layers_loads_no_torch() -> None:
    names = ["countersteer", *(f"countersteer.{n}" for n in (*NO_TORCH, "studies.spec", "studies.plan", "organism"))]
    names += ["countersteer.cli.app", "countersteer.judging.offline"]
    code = f"import importlib, sys\nfor n in {names!r}:\n    importlib.import_module(n)\n"
    code += "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_loads_only_the_parser() -> None:
    code = (
        "import sys\nfrom countersteer.cli import call\nassert call(['--help']) == 0\n"
        "heavy = ('torch', 'numpy', 'scipy', 'pydantic', 'rich', 'altair', 'sqlite3', 'pandas')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr == "[]\n"


def test_public_names_all_exist_and_no_other_is_offered() -> None:
    for name in countersteer.__all__:
        assert getattr(countersteer, name) is not None, name
    assert sorted(countersteer.__all__) == dir(countersteer)
    with pytest.raises(AttributeError, match="no attribute 'steer'"):
        countersteer.steer  # noqa: B018


def test_every_module_says_what_it_holds_and_stays_readable() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        if not path.name.startswith("topics_"):  # the organism's corpus is data
            assert text.count("\n") <= 400, f"{path} is longer than 400 lines"
