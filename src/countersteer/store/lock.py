"""One writing process per run folder.

An advisory lock on `run.lock`, which the kernel drops when the process ends, however it ends. The file names the
holder's process id for the one that is refused. Where a file system has no such locks, the pid file alone decides:
it counts while its process is alive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

from countersteer.store.errors import RunRefusedError, one_line

try:
    import fcntl
except ImportError:  # Windows: the pid file alone decides
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class FolderLock:
    """Holds `run.lock` of a folder from construction to `release`. Raises RunRefusedError if it is held."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        with one_line(folder, "lock the run folder"):
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not self._lock():
                raise RunRefusedError(
                    f"{folder} is in use by process {self._holder()}; wait for it to finish, or stop it and run again"
                )
            with one_line(folder, "lock the run folder"):
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            os.close(self._handle)
            raise

    def _lock(self) -> bool:
        if fcntl is not None:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    return False
        return not self._holder_alive()

    def _holder(self) -> str:
        text = os.pread(self._handle, 200, 0).decode(errors="replace").split()
        if not text:
            return "unknown"
        return text[0] if len(text) < 2 or text[1] == socket.gethostname() else f"{text[0]} on {text[1]}"

    def _holder_alive(self) -> bool:
        holder = self._holder()
        if not holder.isdigit():
            return holder != "unknown"
        if int(holder) == os.getpid():
            return False
        try:
            os.kill(int(holder), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def release(self) -> None:
        """Give the folder back. Safe to call twice. The file stays: removing it would race with the next holder."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = -1
