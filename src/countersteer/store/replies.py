"""Replies of language models that judged, and the ledger of every request made for them. SQLite.

The tables lie in a run, or in a file of their own that several runs share. A request is entered before it leaves; if
the process is killed, it stays "sent" and counts with the most it can have cost.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from countersteer.core.reply import Reply
from countersteer.store.database import connect, transaction
from countersteer.store.errors import one_line

TABLES = (
    "CREATE TABLE replies (key TEXT PRIMARY KEY, judge TEXT NOT NULL, text TEXT NOT NULL, stop TEXT NOT NULL,"
    " input INTEGER NOT NULL, output INTEGER NOT NULL, cached INTEGER NOT NULL, cost REAL) WITHOUT ROWID",
    # state: sent (under way, or its process was killed), ok, refused (not billed), lost (perhaps billed: the most)
    "CREATE TABLE requests (number INTEGER PRIMARY KEY, key TEXT NOT NULL, judge TEXT NOT NULL, state TEXT NOT NULL,"
    " cost REAL NOT NULL, reason TEXT)",
)
SHARED = "replies.db"
MAX_REASON = 2_000


class Replies:
    """The ledger of one database; satisfies `core.reply.Ledger`. Raises StoreError in one line."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self._path = path

    @classmethod
    def shared(cls, folder: str | os.PathLike[str]) -> Replies:
        """The ledger in a folder that several runs may use, at once too. Made if missing."""
        where = Path(folder)
        with one_line(where, "make the folder of replies"):
            where.mkdir(parents=True, exist_ok=True)
        path = where / SHARED
        connection = connect(path, write=True)
        with one_line(path, "open"):
            connection.execute("PRAGMA busy_timeout = 30000")
            for statement in TABLES:
                connection.execute(statement.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
        return cls(connection, path)

    def close(self) -> None:
        """Close a shared ledger (a run closes its own)."""
        self._db.close()

    def reply(self, key: str) -> Reply | None:
        """The kept reply to a question, or None."""
        with one_line(self._path, "read"):
            sql = "SELECT text, stop, input, output, cached, cost FROM replies WHERE key = ?"
            row = self._db.execute(sql, (key,)).fetchone()
        return None if row is None else Reply(*row)

    def spent(self) -> float:
        """USD of all requests so far."""
        with one_line(self._path, "read"):
            return float(self._db.execute("SELECT COALESCE(SUM(cost), 0) FROM requests").fetchone()[0])

    def requests(self) -> int:
        """How many requests were ever made."""
        with one_line(self._path, "read"):
            return int(self._db.execute("SELECT COUNT(*) FROM requests").fetchone()[0])

    def states(self) -> dict[str, int]:
        """How many requests ended in which way."""
        with one_line(self._path, "read"):
            return dict(self._db.execute("SELECT state, COUNT(*) FROM requests GROUP BY state ORDER BY state"))

    def answered(self) -> bool:
        """Whether any request was ever answered."""
        with one_line(self._path, "read"):
            return self._db.execute("SELECT 1 FROM requests WHERE state = 'ok' LIMIT 1").fetchone() is not None

    def claim(self, key: str) -> bool:
        """Take a question; always possible where one process writes (a run, a folder of its own)."""
        return True

    def release(self, key: str) -> None:
        """Give a question back."""

    def keep(self, key: str, judge: str, reply: Reply) -> None:
        """Keep a reply that another ledger paid for."""
        with transaction(self._db, self._path):
            self._db.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (key, judge, *_row(reply))
            )

    def begin(self, key: str, judge: str, worst: float) -> int:
        """Enter a request that is about to leave, with the most it can cost; its number."""
        with transaction(self._db, self._path):
            sql = "INSERT INTO requests (key, judge, state, cost) VALUES (?, ?, 'sent', ?)"
            return int(self._db.execute(sql, (key, judge, worst)).lastrowid or 0)

    def end(
        self, number: int, state: str, cost: float, *, reason: str | None = None, reply: Reply | None = None
    ) -> None:
        """Enter how a request ended, with its reply if there is one, at once."""
        with transaction(self._db, self._path):
            self._db.execute(
                "UPDATE requests SET state = ?, cost = ?, reason = ? WHERE number = ?",
                (state, cost, None if reason is None else reason[:MAX_REASON], number),
            )
            if reply is not None:
                self._db.execute(
                    "INSERT OR IGNORE INTO replies SELECT key, judge, ?, ?, ?, ?, ?, ? FROM requests WHERE number = ?",
                    (*_row(reply), number),
                )

    def forget(self, keys: list[str]) -> None:
        """Drop kept replies, so that their questions are asked again; the ledger of requests stays."""
        with transaction(self._db, self._path):
            self._db.executemany("DELETE FROM replies WHERE key = ?", ((key,) for key in keys))


def _row(reply: Reply) -> tuple[object, ...]:
    return reply.text, reply.stop, reply.input_tokens, reply.output_tokens, reply.cached_tokens, reply.cost
