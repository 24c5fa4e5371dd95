"""One daemon for each device and model of a store."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pimcal.errors import DeviceBusyError, StorageError
from pimcal.locks import holder, take_lock

_REMEDIES = {
    errno.ELOOP: "it is a symbolic link; remove it, after a look at who made it",
    errno.EMLINK: "remove it, after a look at who made it",
    errno.EINVAL: "remove it, after a look at who made it",
    errno.ENOLCK: "it must be on a local disk",
}


def lock_file(folder: Path, *key: str) -> Path:
    """Where the lock of a device and model is."""
    return folder / f"daemon-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.lock"


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock for a block; the operating system lets go of it however the process ends.

    Raises DeviceBusyError with who holds it, StorageError where the file cannot be made, or is no lock's.
    """
    try:
        handle = take_lock(path)
    except BlockingIOError as error:
        told = holder(path) or "another daemon"
        raise DeviceBusyError(f"{what} is kept by {told}; stop that one with `pimcal daemon stop`") from error
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "its folder must be there, and this user may write to it")
        raise StorageError(f"cannot take the lock {path}: {error.strerror}; {remedy}") from error
    try:
        yield
    finally:
        os.close(handle)
