"""What is known of a run as a whole: its facts (JSON values by name), and the state that it is in."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from countersteer.store.database import FILE
from countersteer.store.errors import one_line


class RunFacts:
    """Read access to a run's facts. `folder` is the run's folder; every error is a one-line StoreError."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self.path = folder / FILE
        """The database file."""
        self._db = connection

    def _rows(self, sql: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._db.execute(sql, values)
        except (sqlite3.Error, OSError):
            with one_line(self.path, "read"):
                raise

    def fact(self, name: str, default: Any = None) -> Any:
        """A fact about the run (JSON value), or `default`."""
        for (value,) in self._rows("SELECT value FROM facts WHERE name = ?", (name,)):
            return json.loads(value)
        return default

    @property
    def header(self) -> dict[str, Any]:
        """Format version, code version, packages, device, engine, the study's settings and which were defaulted."""
        return dict(self.fact("header", {}))

    @property
    def study(self) -> str:
        """The study as resolved, TOML."""
        return str(self.fact("study", ""))

    @property
    def notes(self) -> list[str]:
        """Remarks in words, in the order they came up."""
        return list(self.fact("notes", []))

    @property
    def finished(self) -> bool:
        """Whether every planned trial has a response and a grade, or a status that says why not."""
        return bool(self.fact("finished", False))

    @property
    def begun(self) -> bool:
        """Whether anything was made yet: a run whose study was refused before its first response holds nothing."""
        if "inputs" not in self.header:
            return False
        made = ("completions", "calibration", "arm_calibration")
        return "taken_over" in self.header or any(self._any(f"SELECT 1 FROM {table}") for table in made)

    @property
    def calibrated(self) -> bool:
        """Whether every latent has its strength, or a status that says why not."""
        return bool(self.fact("calibrated")) and not self._any("SELECT 1 FROM latents WHERE status IS NULL")

    def calibrating(self) -> bool:
        """Whether a calibration, of base or of an arm, has answers and is not frozen yet."""
        asked = "SELECT 1 FROM calibration c JOIN latents l ON l.latent = c.latent WHERE l.status IS NULL"
        own = "SELECT 1 FROM arm_calibration c JOIN arm_latents l ON l.arm = c.arm AND l.latent = c.latent"
        return self._any(asked) or self._any(f"{own} WHERE l.status IS NULL")

    def own_strengths(self) -> bool:
        """Whether an arm has latents or directions of its own."""
        return self._any("SELECT 1 FROM arm_latents")

    def clamped_at_random(self) -> set[int]:
        """Latents that the run's random sets hold at 0."""
        sets = self.fact("random_sets", {}).values()
        return {int(latent) for one in sets for drawn in one for latent in drawn["latents"]}

    def _any(self, sql: str) -> bool:
        return next(self._rows(f"{sql} LIMIT 1"), None) is not None

    @property
    def judge(self) -> str | None:
        """Key of the judge whose grades this run reports, or None before the references are frozen."""
        judge = self.fact("judge")
        return None if judge is None else str(judge["key"])

    @property
    def base_arm(self) -> str:
        """Name of the arm that every contrast is against."""
        return str(self.fact("base_arm", "base"))

    def arms(self) -> dict[str, dict[str, Any]]:
        """Every arm (expanded levels included) in the study's order, with its settings; empty before the plan."""
        return dict(self.fact("arms", {}))

    def calibration(self) -> dict[str, Any] | None:
        """The frozen calibration artefact, or None (not calibrated yet, or nothing to calibrate).

        Latents that came later have artefacts of their own, in their order: the fact "calibration_added".
        """
        artefact = self.fact("calibration")
        return None if artefact is None else dict(artefact)
