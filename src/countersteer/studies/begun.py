"""A study as its run was begun with it: a run of an older version lacks the settings that came later.

Where such a run's study, read today, resolves to the study that is asked for, it is the same, and the run goes on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from countersteer.core.errors import InputError
from countersteer.store import Run
from countersteer.studies.spec import Spec, parse


def as_begun(spec: Spec, out: str | Path) -> Spec:
    """The study with the text that the run in `out` keeps of it, or as it is. Raises StoreError."""
    if not Run.exists(out):
        return spec
    with Run.open(out) as run:
        kept = run.study
    if kept == spec.text:
        return spec
    try:
        same = parse(kept, name=spec.name).text == spec.text
    except InputError:
        same = False
    return replace(spec, text=kept) if same else spec
