"""Lock files, also in folders that others may write to: what somebody has put there in their place is left alone."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

_LONGEST = 4096  # bytes of what a holder says of itself


def take_lock(path: Path) -> int:
    """A handle on the lock file `path`, held until it is closed, however the process ends.

    The file stays, as removing it would race with the next one; it tells who holds it, for `holder`. Raises
    BlockingIOError where another process holds it, other OSErrors where it cannot be made or is no lock file.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        _check_own(os.fstat(handle))
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(OSError):  # the disk is full: the lock holds all the same, it only does not tell whose it is
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} ({' '.join(sys.argv)[:1000]})".encode(errors="replace"), 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def holder(path: Path) -> str:
    """Who holds a lock, in its own words; empty where it does not say."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        return os.pread(handle, _LONGEST, 0).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(handle)


def _check_own(found: os.stat_result) -> None:
    """A file with a second name may be anybody's: a hard link needs no right to write what it names."""
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is there and no regular file")
    if found.st_nlink != 1:
        raise OSError(errno.EMLINK, "it is another file's name, too")
