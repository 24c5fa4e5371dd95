"""One owner for each board: a lock file that is taken before the port is opened.

Opening a port raises its control lines, which restarts many boards; a lock on the open port comes too late.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from pathlib import Path

from pimcal.errors import DeviceBusyError, DeviceUnavailableError
from pimcal.locks import holder, take_lock


class BoardLock:
    """Held from construction to `release`, or until the process ends, however it ends."""

    def __init__(self, port: str, folder: Path | None = None) -> None:
        """`port`: what two hosts of one board have in common. Raises DeviceBusyError with who holds it."""
        path = (folder or runtime_folder()) / f"{_file_name(port)}.lock"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_own(path.parent)
            self._handle = take_lock(path)
        except BlockingIOError as error:
            raise busy(port, holder(path)) from error
        except OSError as error:
            raise DeviceUnavailableError(
                f"cannot take the lock of {port}, {path}: {error.strerror}; set XDG_RUNTIME_DIR to a folder of yours"
            ) from error

    def release(self) -> None:
        """Let others have the board; the file stays, as removing it would race with them."""
        os.close(self._handle)


def busy(port: str, who: str) -> DeviceBusyError:
    """The error for a port that somebody else has open."""
    return DeviceBusyError(f"{port} is in use by {who or 'another program'}; wait until it is done, or end it")


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


def _check_own(folder: Path) -> None:
    """In a temporary folder anybody may have made it before. Raises OSError."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError(errno.EPERM, f"{folder} is another user's, or a link")


def _file_name(port: str) -> str:
    return re.sub(r"[^\w.-]+", "_", port).strip("_")[:200]
