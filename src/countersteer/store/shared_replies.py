"""Replies that several runs share: a folder of them behind a run's own ledger.

Money is counted where it is spent: every request is entered in the run's own ledger, with its reply, so a cap holds for
the run alone and the run tells what it paid for. The folder only saves asking again; two processes that come to one
question at the same time ask it once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
from pathlib import Path

from countersteer.core.reply import Reply
from countersteer.store.errors import one_line
from countersteer.store.replies import Replies

try:
    import fcntl
except ImportError:  # no such locks: two processes may then ask the same question at once
    fcntl = None  # type: ignore[assignment]

_HELD = {errno.EACCES, errno.EAGAIN}
_PLACES = 1 << 40


class Claims:
    """Questions that processes have taken, as locks on bytes of one file, which the kernel drops with the process."""

    def __init__(self, folder: Path) -> None:
        self._handle = -1
        if fcntl is not None and hasattr(fcntl, "F_OFD_SETLK"):
            with one_line(folder, "lock a question in"):
                self._handle = os.open(folder / "questions.lock", os.O_RDWR | os.O_CREAT, 0o644)

    def take(self, key: str) -> bool:
        """Take a question; False while somebody else has it. Always possible where there are no such locks."""
        try:
            self._set(fcntl.F_WRLCK, key)
        except OSError as error:
            return error.errno not in _HELD
        return True

    def give_back(self, key: str) -> None:
        """Give a question back."""
        with contextlib.suppress(OSError):
            self._set(fcntl.F_UNLCK, key)

    def _set(self, kind: int, key: str) -> None:
        if self._handle < 0:
            return
        place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()[:5], "big") % _PLACES
        fcntl.fcntl(self._handle, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, place, 1, 0))

    def close(self) -> None:
        """Give everything back."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class SharedLedger:
    """A run's own ledger with a folder of shared replies behind it; satisfies `core.reply.Ledger`."""

    def __init__(self, own: Replies, folder: str | os.PathLike[str]) -> None:
        """Makes the folder if it is missing. Raises StoreError in one line."""
        self._own = own
        self._shared = Replies.shared(folder)
        self._claims = Claims(Path(folder))
        self._asked: dict[int, tuple[str, str]] = {}

    def close(self) -> None:
        """Close the folder's ledger (the run closes its own)."""
        self._claims.close()
        self._shared.close()

    def reply(self, key: str) -> Reply | None:
        """The kept reply to a question, whoever asked it."""
        return self._own.reply(key) or self._shared.reply(key)

    def spent(self) -> float:
        """USD of this run's requests."""
        return self._own.spent()

    def requests(self) -> int:
        """How many requests this run made."""
        return self._own.requests()

    def answered(self) -> bool:
        """Whether a request of this run was ever answered."""
        return self._own.answered()

    def claim(self, key: str) -> bool:
        """Take a question; False while another process asks it."""
        return self._claims.take(key)

    def release(self, key: str) -> None:
        """Give a question back."""
        self._claims.give_back(key)

    def begin(self, key: str, judge: str, worst: float) -> int:
        """Enter a request that is about to leave."""
        number = self._own.begin(key, judge, worst)
        self._asked[number] = key, judge
        return number

    def end(
        self, number: int, state: str, cost: float, *, reason: str | None = None, reply: Reply | None = None
    ) -> None:
        """Enter how a request ended. Its reply is shared first: a request whose end is lost counts with its most."""
        key, judge = self._asked.pop(number)
        if reply is not None:
            self._shared.keep(key, judge, reply)
        self._own.end(number, state, cost, reason=reason, reply=reply)

    def forget(self, keys: list[str]) -> None:
        """Drop kept replies here and in the folder, so that their questions are asked again."""
        self._own.forget(keys)
        self._shared.forget(keys)
