"""Room on the disk that a store keeps for gc: on a disk that is full to the last byte not even gc could write a row."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pimcal.files import take_room

SIZE = 256 * 1024  # bytes: what SQLite's log holds of new pages, and the rows of some hundred generations


def reserve_file(folder: Path) -> Path:
    return folder / "reserve"


def keep_reserve(folder: Path) -> None:
    """Take the room, where it is not taken yet and the disk has it."""
    with suppress(OSError):
        take_room(reserve_file(folder), SIZE)


def release_reserve(folder: Path) -> None:
    """Give the room back, until `keep_reserve`."""
    with suppress(OSError):
        reserve_file(folder).unlink(missing_ok=True)
