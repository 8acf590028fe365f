"""The run on disk: create, resume, read and export the result of a study. SQLite; imports no torch."""

from countersteer.store.errors import RunRefusedError
from countersteer.store.export import export
from countersteer.store.rows import (
    PENDING,
    Answer,
    FreshAttempt,
    LatentRow,
    Planned,
    Reference,
    Resample,
    Response,
    Trial,
)
from countersteer.store.run import Run

__all__ = [
    "PENDING",
    "Answer",
    "FreshAttempt",
    "LatentRow",
    "Planned",
    "Reference",
    "Resample",
    "Response",
    "Run",
    "RunRefusedError",
    "Trial",
    "export",
]
