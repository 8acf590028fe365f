"""The tables of a run, as named migrations that are only ever appended to.

`PRAGMA user_version` holds how many have been applied. A database with more of them than this version knows is
refused; one with fewer is brought up to date when it is opened for writing.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from countersteer.store import arm_calibration, replies
from countersteer.store.errors import RunRefusedError


@dataclass(frozen=True)
class Migration:
    """One step of the schema: a name for people, statements for SQLite."""

    name: str
    statements: tuple[str, ...]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        "001 first tables",
        (
            # facts about the run as JSON: header, study, notes, calibration artefact, judge, finished
            "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
            # unsteered responses that the judge scores against
            "CREATE TABLE refs (ordinal INTEGER PRIMARY KEY, prompt TEXT NOT NULL, seed INTEGER NOT NULL,"
            " key TEXT NOT NULL)",
            "CREATE TABLE latents (rank INTEGER PRIMARY KEY, latent INTEGER NOT NULL UNIQUE, label TEXT,"
            " concreteness REAL, unit REAL, strength REAL, low REAL, high REAL, status TEXT)",
            "CREATE TABLE calibration (ordinal INTEGER PRIMARY KEY, latent INTEGER NOT NULL, prompt TEXT NOT NULL,"
            " strength REAL NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL, score REAL, text TEXT NOT NULL,"
            " reason TEXT)",
            # the planned trials; key NULL iff the trial has a status already (uncalibrated)
            "CREATE TABLE trials (arm TEXT NOT NULL, ordinal INTEGER NOT NULL, key TEXT NOT NULL,"
            " latent INTEGER NOT NULL, label TEXT, strength REAL, prompt TEXT NOT NULL, user TEXT NOT NULL,"
            " system TEXT, prefix TEXT, seed INTEGER NOT NULL, planned_status TEXT,"
            " PRIMARY KEY (arm, ordinal)) WITHOUT ROWID",
            "CREATE INDEX trials_by_key ON trials (key)",
            # fresh first attempts for the resample baseline
            "CREATE TABLE resamples (arm TEXT NOT NULL, ordinal INTEGER NOT NULL, draw INTEGER NOT NULL,"
            " key TEXT NOT NULL, seed INTEGER NOT NULL, PRIMARY KEY (arm, ordinal, draw)) WITHOUT ROWID",
            "CREATE INDEX resamples_by_key ON resamples (key)",
            # one response per trial key, whoever asks for it
            "CREATE TABLE completions (key TEXT PRIMARY KEY, status TEXT NOT NULL, text TEXT NOT NULL,"
            " token_ids BLOB NOT NULL, prompt_tokens INTEGER NOT NULL, finish TEXT, receipt TEXT, reason TEXT)"
            " WITHOUT ROWID",
            "CREATE TABLE grades (response TEXT NOT NULL, judge TEXT NOT NULL, status TEXT NOT NULL,"
            " grade TEXT NOT NULL, PRIMARY KEY (response, judge)) WITHOUT ROWID",
        ),
    ),
    Migration("002 replies and requests of judges", replies.TABLES),
    Migration("003 arms with latents and strengths of their own", arm_calibration.TABLES),
)


def version(connection: sqlite3.Connection) -> int:
    """How many migrations a database has."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a database. Raises RunRefusedError when it is newer than this program."""
    found = version(connection)
    if found > len(MIGRATIONS):
        raise RunRefusedError(
            f"{path} was written by a newer countersteer (schema {found}, this one knows {len(MIGRATIONS)}); upgrade"
        )
    return found


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Apply the missing migrations. The caller holds the transaction, so that it is all or nothing."""
    for number, migration in enumerate(MIGRATIONS[check(connection, path) :], check(connection, path) + 1):
        for statement in migration.statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
