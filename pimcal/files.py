"""Files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pimcal.errors import StorageError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, sync it to disk, then rename it into place.

    Raises StorageError (full disk, no permission, no such folder); what stood at `path` before is untouched then.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; nothing was changed there") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise StorageError where no file could be made in `folder`, which need not exist yet: before long work."""
    place = folder.absolute()
    while not os.access(place, os.F_OK):
        place = place.parent
    if not place.is_dir():
        raise StorageError(f"cannot write to {folder}: {place} is no folder; name another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write to {folder}: no permission to make a file in {place}; name another folder")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
