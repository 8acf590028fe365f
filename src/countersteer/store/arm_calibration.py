"""The latents, or directions, of an arm that has strengths of its own, and their calibration. SQLite.

Offers what a calibration needs of a run, for one arm: once frozen, strengths never change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from countersteer.store.database import transaction
from countersteer.store.rows import Answer, LatentRow

if TYPE_CHECKING:
    from countersteer.store.run import Run

TABLES = (
    "CREATE TABLE arm_latents (arm TEXT NOT NULL, rank INTEGER NOT NULL, latent INTEGER NOT NULL, label TEXT,"
    " concreteness REAL, unit REAL, strength REAL, low REAL, high REAL, status TEXT, PRIMARY KEY (arm, rank))"
    " WITHOUT ROWID",
    "CREATE TABLE arm_calibration (arm TEXT NOT NULL, ordinal INTEGER NOT NULL, latent INTEGER NOT NULL,"
    " prompt TEXT NOT NULL, strength REAL NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL, score REAL,"
    " text TEXT NOT NULL, reason TEXT, PRIMARY KEY (arm, ordinal)) WITHOUT ROWID",
)
_ROW = "rank, latent, label, concreteness, unit, strength, low, high, status"
_ANSWER = "ordinal, latent, prompt, strength, key, status, score, text, reason"


class ArmCalibration:
    """One arm's own latents and calibration answers in a run. Raises StoreError in one line."""

    def __init__(self, run: Run, arm: str) -> None:
        self._run, self.arm = run, arm
        self.folder = run.folder

    @property
    def judge(self) -> str | None:
        """Key of the run's judge."""
        return self._run.judge

    @property
    def header(self) -> dict[str, Any]:
        """The run's header."""
        return self._run.header

    def fact(self, name: str, default: Any = None) -> Any:
        """A fact of this arm."""
        return self._run.fact(f"{name}:{self.arm}", default)

    def latents(self) -> list[LatentRow]:
        """The arm's latents in order; empty before they are planned."""
        sql = f"SELECT {_ROW} FROM arm_latents WHERE arm = ? ORDER BY rank"
        return [LatentRow(*row) for row in self._run._rows(sql, (self.arm,))]

    def answers(self) -> list[Answer]:
        """The answered queries in order."""
        sql = f"SELECT {_ANSWER} FROM arm_calibration WHERE arm = ? ORDER BY ordinal"
        return [Answer(*row) for row in self._run._rows(sql, (self.arm,))]

    def plan_latents(self, latents: Iterable[LatentRow]) -> None:
        """Record the arm's latents."""
        marks = ", ".join("?" * 10)
        rows = [(self.arm, *vars(row).values()) for row in latents]
        self._run._many(f"INSERT INTO arm_latents VALUES ({marks})", rows)

    def add_answer(self, answer: Answer) -> None:
        """Record one answer."""
        marks = ", ".join("?" * 10)
        self._run._many(f"INSERT OR IGNORE INTO arm_calibration VALUES ({marks})", [(self.arm, *vars(answer).values())])

    def freeze_calibration(self, artefact: dict[str, Any] | None, latents: Iterable[LatentRow]) -> None:
        """Record the artefact and the arm's strengths, at once; a later one is kept beside the first."""
        with transaction(self._run._db, self._run.path):
            if self.fact("calibration") is None:
                self._run._set(f"calibration:{self.arm}", artefact)
            else:
                added = self.fact("calibration_added", [])
                self._run._set(f"calibration_added:{self.arm}", [*added, artefact])
            self._run._set(f"calibrated:{self.arm}", True)
            self._run._db.executemany(
                "UPDATE arm_latents SET unit = ?, strength = ?, low = ?, high = ?, status = ?"
                " WHERE arm = ? AND latent = ?",
                ((r.unit, r.strength, r.low, r.high, r.status, self.arm, r.latent) for r in latents),
            )
