"""One daemon for each device and model of a store."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pimcal.errors import DeviceBusyError, StorageError


def lock_file(folder: Path, *key: str) -> Path:
    """Where the lock of a device and model is."""
    return folder / f"daemon-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.lock"


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock for a block; the operating system lets go of it however the process ends.

    The file stays, as removing it would race with the next one. Raises DeviceBusyError with who holds it, StorageError
    where the file cannot be made.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot take the lock {path}: {error.strerror}; its folder must be there, and this user may write to it"
        ) from error
    try:
        _take(handle, path, what)
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path, what: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(handle, 4096, 0).decode(errors="replace").strip() or "another daemon"
        raise DeviceBusyError(f"{what} is kept by {holder}; stop that one with `pimcal daemon stop`") from error
    except OSError as error:
        raise StorageError(f"cannot take the lock {path}: {error.strerror}; it must be on a local disk") from error
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} ({' '.join(sys.argv)[:1000]})".encode(), 0)
    except OSError:
        pass  # the disk is full: the lock holds all the same, it only does not tell whose it is
