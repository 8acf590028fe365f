"""Opening the SQLite file of a run: journal mode, safety settings, transactions.

A run that is written uses the write-ahead log where the file system can (readers are then never in the way), and a
rollback journal under an exclusive lock on network file systems, where shared memory does not work, and wherever else
the log turns out not to.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from countersteer.store.errors import RunRefusedError, one_line

FILE = "run.db"
_NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "fuse", "glusterfs", "virtiofs")


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """A connection in autocommit mode. Raises StoreError in one line.

    It may be used from another thread than the one that opened it (a notebook's), by one at a time.
    """
    with one_line(path, "open"):
        if not write:
            return _reader(path)
        if not on_network(path):
            with contextlib.suppress(_NoLog):
                return _writer(path, log=True)
        return _writer(path, log=False)


class _NoLog(Exception):
    """The write-ahead log does not work here."""


def _writer(path: Path, *, log: bool) -> sqlite3.Connection:
    """A connection to write with, by the log or by a rollback journal under an exclusive lock.

    Raises _NoLog where the log cannot be used (no shared memory, no byte locks); a log left behind is then folded in.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
    try:
        if log:
            try:
                mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                connection.execute("BEGIN IMMEDIATE")  # the log's first use
                connection.execute("ROLLBACK")
            except sqlite3.OperationalError as error:
                if "disk is full" in str(error) or str(error).endswith("is locked"):
                    raise
                raise _NoLog(str(error)) from error
            if mode != "wal":
                raise _NoLog(mode)
            connection.execute("PRAGMA synchronous = NORMAL")
            return connection
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _reader(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise RunRefusedError(f"{path.parent} holds no run (no {FILE}); give the folder that `run --out` wrote")
    quoted = path.resolve().as_uri()
    unfinished = path.with_name(path.name + "-wal")
    frozen = not os.access(path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids) and not (
        unfinished.exists() and unfinished.stat().st_size
    )
    suffix = "?mode=ro&immutable=1" if frozen else "?mode=ro"
    connection = sqlite3.connect(quoted + suffix, uri=True, isolation_level=None, timeout=5.0, check_same_thread=False)
    connection.execute("PRAGMA schema_version").fetchone()
    return connection


def on_network(path: Path) -> bool:
    """Whether the file lies on a network or user-space file system, by the mount table (False where there is none)."""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
        target = str(path.resolve())
    except OSError:
        return False
    best, kind = "", ""
    for line in lines:
        parts = line.split()
        if len(parts) > 2:
            mount = parts[1].replace("\\040", " ")
            inside = target == mount or target.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, kind = mount, parts[2]
    return kind.startswith(_NETWORK)


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """All of the block's statements or none. Raises StoreError in one line."""
    with one_line(path, "write to"):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
                connection.execute("ROLLBACK")
            raise
