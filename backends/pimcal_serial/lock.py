"""One owner for each board: a lock file that is taken before the port is opened.

Opening a port raises its control lines, which restarts many boards; a lock on the open port comes too late.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import tempfile
from pathlib import Path

from pimcal.errors import DeviceBusyError, DeviceUnavailableError


class BoardLock:
    """Held from construction to `release`, or until the process ends, however it ends."""

    def __init__(self, port: str, folder: Path | None = None) -> None:
        """`port`: what two hosts of one board have in common. Raises DeviceBusyError with who holds it."""
        path = (folder or runtime_folder()) / f"{_file_name(port)}.lock"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DeviceUnavailableError(
                f"cannot take the lock of {port}, {path}: {error.strerror}; set XDG_RUNTIME_DIR to a folder of yours"
            ) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._handle, 4096, 0).decode(errors="replace").strip()
            os.close(self._handle)
            raise busy(port, holder) from error
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} ({' '.join(sys.argv)[:1000]})".encode(), 0)

    def release(self) -> None:
        """Let others have the board; the file stays, as removing it would race with them."""
        os.close(self._handle)


def busy(port: str, holder: str) -> DeviceBusyError:
    """The error for a port that somebody else has open."""
    return DeviceBusyError(f"{port} is in use by {holder or 'another program'}; wait until it is done, or end it")


def who_has_open(path: str) -> str:
    """The other processes that have a file open, as far as this user may see them; "" where none is seen."""
    target = Path(path).resolve()
    found = (process for process in Path("/proc").glob("[0-9]*") if _has_open(process, target))
    return " and ".join(_told(process) for process in found if process.name != str(os.getpid()))


def _has_open(process: Path, target: Path) -> bool:
    try:
        return any(link.readlink() == target for link in (process / "fd").iterdir())
    except OSError:  # somebody else's, or it has ended meanwhile
        return False


def _told(process: Path) -> str:
    try:
        command = (process / "cmdline").read_bytes()[:1000].replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = "has ended"
    return f"process {process.name} ({command})"


def runtime_folder() -> Path:
    """Where the user's lock files are."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    return Path(given) / "pimcal" if given else Path(tempfile.gettempdir()) / f"pimcal-{os.getuid()}"


def _file_name(port: str) -> str:
    return re.sub(r"[^\w.-]+", "_", port).strip("_")[:200]
