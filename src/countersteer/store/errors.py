"""The error of a run folder that cannot be used as asked: a StoreError that is also bad input (exit code 2)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from countersteer.core.errors import InputError, StoreError


class RunRefusedError(StoreError, InputError):
    """A run folder that cannot be used: of another study, read-only, in use, or of a newer version."""

    exit_code = 2


_MEANING = (
    ("disk is full", "the disk is full; free some space and run the same command again, nothing finished is lost"),
    ("readonly", "it is read-only; choose a folder you may write to"),
    ("read-only", "it is read-only; choose a folder you may write to"),
    ("locked", "another process holds it; wait for it to finish"),
    ("not a database", "it is not a database of countersteer; choose another folder"),
    ("malformed", "it is damaged; restore a copy or start a new run in another folder"),
    ("unable to open", "it cannot be opened; check that the folder exists and that you may read and write it"),
)


@contextmanager
def one_line(path: Path, doing: str) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into a one-line StoreError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        for sign, meaning in _MEANING:
            if sign in text.lower():
                kind = StoreError if sign in ("disk is full", "malformed") else RunRefusedError
                raise kind(f"cannot {doing} {path}: {meaning}") from error
        raise StoreError(f"cannot {doing} {path}: {text}; check the disk and run the same command again") from error
    except OSError as error:
        why = error.strerror or str(error)
        if isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError) or error.errno == 30:
            raise RunRefusedError(f"cannot {doing} {path}: {why}; choose a folder you may write to") from error
        raise StoreError(f"cannot {doing} {path}: {why}") from error
