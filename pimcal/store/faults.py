"""What SQLite's errors mean for whoever uses a store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pimcal
from pimcal.errors import StorageError
from pimcal.store.schema import VERSION

_UNCHANGED = "nothing was changed there"
_TOLD = {
    "FULL": f"the disk is full; {_UNCHANGED}, make room and try again",
    "IOERR": f"the disk is full or failing; {_UNCHANGED}, look at `df` and the kernel's log",
    "READONLY": f"it cannot be written; {_UNCHANGED}, give this user write permission or name another folder",
    "CANTOPEN": "it cannot be opened; give this user permission for the folder and all its files",
    "PERM": "it cannot be opened; give this user permission for the folder and all its files",
    "NOTADB": "store.db is no database; name another folder",
    "CORRUPT": "store.db is damaged; put a copy of the whole folder in its place",
}


class DamagedStoreError(StorageError):
    """What is in a store is not what any pimcal has written."""


class StoreBusyError(StorageError):
    """Another process writes to the store and did not finish in time."""

    exit_code = 75


@contextmanager
def faults_told(folder: Path) -> Iterator[None]:
    """Raise SQLite's errors of a block as StorageError or StoreBusyError, with what to do.

    What SQLite finds wrong with a query or a row is told as damage: both are right in a store that is whole.
    """
    try:
        yield
    except sqlite3.Error as error:
        kind = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_").partition("_")[0]
        if kind in ("BUSY", "LOCKED", "PROTOCOL"):
            raise StoreBusyError(
                f"store {folder} is being written by another process; try again when it is done"
            ) from error
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
            raise  # a mistake of whoever calls
        if kind in _TOLD:
            raise StorageError(f"store {folder}: {_TOLD[kind]} (SQLite: {error})") from error
        raise damaged(folder, f"SQLite: {error}") from error


def damaged(folder: Path, what: str) -> DamagedStoreError:
    return DamagedStoreError(
        f"store {folder}: store.db is damaged; put a copy of the whole folder in its place ({what})"
    )


def no_store(folder: Path) -> StorageError:
    return StorageError(f"there is no store in {folder}; `pimcal calibrate --store {folder}` makes one, with a record")


def foreign(folder: Path) -> StorageError:
    return StorageError(f"{folder / 'store.db'} is a database of another program, not a store; name another folder")


def too_new(folder: Path, version: int) -> StorageError:
    return StorageError(
        f"store {folder} has schema {version}, written by a newer pimcal; this one, {pimcal.__version__}, knows schema "
        f"{VERSION}: update pimcal here, or use another store"
    )


def too_old(folder: Path, version: int) -> StorageError:
    return StorageError(
        f"store {folder} has schema {version}, written by an older pimcal; this one, {pimcal.__version__}, reads "
        f"schema {VERSION}: stop what still runs the older one, then `pimcal records migrate --store {folder}`"
    )
