"""Files appear whole or not at all, and only what is a file is read."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pimcal.errors import StorageError

_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
}  # fmt: skip


def read_regular(path: str | Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises OSError, with what is wrong as its `strerror`."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EINVAL, f"it has more than {most} bytes, which no such file has")
    return content


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open for reading. A pipe could keep its reader waiting for ever, a device never end.

    Raises OSError, with what is wrong as its `strerror`.
    """
    try:
        _check_regular(Path(path).stat().st_mode)  # before it is opened: that alone does something to some devices
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:  # no file can have such a name
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        _check_regular(os.fstat(handle).st_mode)  # it may have been replaced in between
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(
            errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, and only regular files are read"
        )


def write_atomically(path: Path, content: bytes, *, follow: bool = True) -> None:
    """Write `content` beside `path`, sync it to disk, then rename it into place. A link stays; its file is replaced.

    With `follow=False` the link itself is replaced: for names that pimcal chooses in a folder that others may write to.
    Raises StorageError (full disk, no permission, no such folder, a pipe or device at `path`); what stood at `path`
    before is untouched then.
    """
    temporary = None
    try:
        place = path.resolve() if follow else path.absolute()
        check_replaceable(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(place)
        temporary = None
        sync_folder(place.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; nothing was changed there") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def take_room(path: Path, size: int) -> None:
    """Have a file of so many random bytes, new unless it is there. Raises OSError; a part is not left then."""
    try:
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_size == size:
            return
        path.unlink()
    except FileNotFoundError:
        pass
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(os.urandom(size))  # zeros may take no room
    except OSError:
        path.unlink(missing_ok=True)
        raise


def check_replaceable(path: Path) -> None:
    """Raise StorageError where `path` is there and no file: renaming over a device or a pipe would destroy it."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device, pipe or socket"
        raise StorageError(f"cannot write {path}: it is {kind}; name a file")


def replace_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` into `folder`, all of them or none, even where Ctrl-C or a full disk comes between.

    Raises StorageError; the folder is as it was then.
    """
    try:
        # Inside the folder, which may be a mount point, or the only place here that may be written.
        with _made(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".") as stage:
            staged = [Path(stage) / name for name in files]
            for path in staged:
                check_replaceable(folder / path.name)
                write_atomically(path, files[path.name])
            with ThreadPoolExecutor(max_workers=1) as mover:  # Ctrl-C interrupts the main thread only
                mover.submit(_move, staged, folder).result()
    except (OSError, StorageError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or error
        raise StorageError(f"cannot write to {folder}: {reason}; nothing was changed there") from error


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder, with those above it, for a block; what was new goes again, where the block left nothing in it."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in new:
            with suppress(OSError):  # after a late Ctrl-C all files are there
                place.rmdir()
        raise


def _move(files: list[Path], folder: Path) -> None:
    for file in files:
        file.replace(folder / file.name)
    sync_folder(folder)


def check_writable(folder: Path) -> None:
    """Raise StorageError where no file could be made in `folder`, which need not exist yet: before long work."""
    place = folder.absolute()
    while not os.access(place, os.F_OK):
        place = place.parent
    if not place.is_dir():
        raise StorageError(f"cannot write to {folder}: {place} is no folder; name another one")
    try:
        with tempfile.TemporaryFile(dir=place):  # the mode of a folder does not tell all: it may be mounted read-only
            pass
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"cannot write to {folder}: no file can be made in {place} ({reason}); name another"
        ) from error


def sync_folder(folder: Path) -> None:
    """Have the disk know which files are in `folder`. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
