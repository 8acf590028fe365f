"""The header of a run: what a reader needs to know where its numbers come from."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from countersteer import __version__
from countersteer.studies.spec import Spec

_PACKAGES = (
    "countersteer",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "inspect-ai",
    "openai",
    "anthropic",
)


def header(spec: Spec) -> dict[str, Any]:
    """Study name, settings and which were defaulted, versions, git revision with its dirty flag, platform."""
    return {
        "countersteer": __version__,
        "study": spec.name,
        "settings": spec.settings.model_dump(mode="json", exclude_none=True),
        "defaulted": list(spec.defaulted),
        "base_arm": spec.base,
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git_revision(Path(__file__)),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_revision(file: Path) -> dict[str, Any] | None:
    """{"revision", "dirty"} of the repository that holds `file`, or None: an installed package has no revision."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    revision = ask("rev-parse", "HEAD") if ask("ls-files", "--error-unmatch", file.name) else None
    if revision is None:
        return None
    status = ask("status", "--porcelain", "--untracked-files=no")
    return {"revision": revision.strip(), "dirty": bool(status and status.strip())}
