"""Which faults a new start of the daemon would only meet again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from pimcal.errors import DataError, StorageError
from pimcal.store.faults import DamagedStoreError, StoreBusyError

_DAMAGED = "SQLITE_NOTADB", "SQLITE_CORRUPT"
_NOT_THERE = FileNotFoundError, IsADirectoryError, NotADirectoryError


def is_lasting(failure: BaseException) -> bool:
    """Whether it is in the images or the network, or in what a store holds: too new, another program's, damaged.

    A disk that is full, a permission that is missing, and another process that writes may have come right by then.
    """
    if isinstance(failure, DamagedStoreError):
        return True
    if isinstance(failure, StoreBusyError) or not isinstance(failure, StorageError):
        return isinstance(failure, DataError)
    return all(map(_is_of_the_content, _causes(failure)))


def _is_of_the_content(cause: BaseException) -> bool:
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorname", "").startswith(_DAMAGED)
    return not isinstance(cause, OSError) or isinstance(cause, _NOT_THERE)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__
    while cause is not None:
        yield cause
        cause = cause.__cause__
