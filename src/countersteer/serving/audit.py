"""The audit log: one JSON line per request that was generated for, and per change of policy. Only ever appended to.

A line holds who (the key's name), what was decided and why, the bundle's fingerprint, the receipt, and how it ended; no
prompt and no response unless the administrator asks for text, and never a key. A thread writes and syncs:

    always     a response ends only after its line is on the disk (one sync serves all that wait)
    interval   lines are synced once a second: a crash of the machine may lose that, a crash of the server nothing
    never      the operating system decides

When the disk refuses, lines are kept and tried again, and the server takes no new work until they are written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from countersteer.core.errors import InputError

log = logging.getLogger(__name__)
SYNC = ("always", "interval", "never")
SECONDS = 1.0


@dataclass(frozen=True)
class AuditOptions:
    """Where the log lies, when it is synced, and whether prompts and responses are kept in it."""

    path: Path
    sync: str = "interval"
    text: bool = False

    def __post_init__(self) -> None:
        if self.sync not in SYNC:
            raise InputError(f"audit sync is one of {', '.join(SYNC)}, got {self.sync!r}")


class Audit:
    """An open audit log. `write` never blocks; `failed` says why the log cannot be written, None if it can."""

    def __init__(self, options: AuditOptions) -> None:
        self.options = options
        self.failed: str | None = None
        self._queue: queue.SimpleQueue[tuple[bytes, Future[None]] | None] = queue.SimpleQueue()
        self._torn = False
        self._file = self._open()
        self._thread = threading.Thread(target=self._run, name="countersteer-audit", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> Future[None]:
        """Append a record; the future is done when it is written (and synced, with sync "always")."""
        done: Future[None] = Future()
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace")
        self._queue.put((line + b"\n", done))
        return done

    @property
    def waits(self) -> bool:
        """Whether a response ends only after its line is on the disk."""
        return self.options.sync == "always"

    def close(self) -> None:
        """Write what is left and stop."""
        self._queue.put(None)
        self._thread.join(timeout=30)
        os.close(self._file)

    def _open(self) -> int:
        """Open for appending, locked against a second server. Raises InputError."""
        path = self.options.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise InputError(f"cannot write the audit log {path}: {error.strerror}") from error
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            log.warning("this system cannot lock the audit log: let one server only write it")
        except OSError as error:
            os.close(file)
            raise InputError(f"audit log {path} is in use by another server; give each its own") from error
        size = os.fstat(file).st_size
        self._torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # a crash in the middle of a line
        return file

    # Everything below runs on the log's thread.

    def _run(self) -> None:
        pending: deque[tuple[bytes, Future[None]]] = deque()
        synced, dirty, ends = time.monotonic(), False, False
        while not (ends and not pending):
            try:
                wait = SECONDS if pending or dirty else None
                item = self._queue.get(timeout=wait) if not ends else None
                while item is not None:
                    pending.append(item)
                    item = self._queue.get_nowait()
                ends = True
            except queue.Empty:
                pass
            try:
                dirty = self._append(pending) or dirty
                due = self.options.sync == "interval" and time.monotonic() - synced >= SECONDS
                if dirty and (due or ends):
                    os.fsync(self._file)
                    synced, dirty = time.monotonic(), False
                dirty = dirty and self.options.sync == "interval"
                self.failed = None
            except OSError as error:
                self.failed = f"the audit log cannot be written ({error.strerror})"
                log.error("%s; %d lines wait", self.failed, len(pending))
                if ends:
                    log.error("%d lines of the audit log are lost", len(pending))
                    return

    def _append(self, pending: deque[tuple[bytes, Future[None]]]) -> bool:
        """Write all lines in one call; whether anything was written. Raises OSError, keeping what is not written."""
        if not pending:
            return False
        self._follow()
        lead = b"\n" if self._torn else b""
        left = os.write(self._file, lead + b"".join(line for line, _ in pending)) - len(lead)
        done: list[Future[None]] = []
        while pending and left >= len(pending[0][0]):
            line, future = pending.popleft()
            left -= len(line)
            done.append(future)
        if left >= 0:  # otherwise not even the line break was written
            self._torn = left > 0
        if self.options.sync == "always":
            os.fsync(self._file)
        for future in done:
            with contextlib.suppress(InvalidStateError):  # whoever waited may have gone
                future.set_result(None)
        if pending:  # a full disk: the rest again, from a new line
            raise OSError(errno.ENOSPC, "no space left on the device")
        return True

    def _follow(self) -> None:
        """Reopen after the file was moved away (log rotation by renaming)."""
        try:
            here = os.stat(self.options.path)
            same = (here.st_ino, here.st_dev) == (os.fstat(self._file).st_ino, os.fstat(self._file).st_dev)
        except FileNotFoundError:
            same = False
        if not same:
            try:
                new = self._open()
            except InputError as error:
                raise OSError(errno.EIO, str(error)) from error
            os.close(self._file)
            self._file = new
