"""What the engine must find again after a restart and the store has no place for, in a file beside it."""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pimcal.files import read_regular, write_atomically
from pimcal.recalibration.learned import Learned
from pimcal.store import Key

logger = logging.getLogger(__name__)

_FORMAT = 1
LARGEST = 2**32  # bytes: the answers of a million tiles of 256 columns


@dataclass(frozen=True, slots=True)
class Memory:
    """What an engine has learned under a record."""

    record_id: str
    learned: Learned

    def save(self, path: Path) -> None:
        """Raises StorageError; what was there before is untouched then."""
        content = io.BytesIO()
        torch.save({"format": _FORMAT, "record": self.record_id, "learned": self.learned.state_dict()}, content)
        write_atomically(path, content.getvalue(), follow=False)

    @classmethod
    def load(cls, path: Path, record_id: str) -> Memory | None:
        """None where nothing is kept for this record; it is told where that is because the file is damaged."""
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(read_regular(path, LARGEST)), weights_only=True)
            if state.get("format") != _FORMAT:
                raise ValueError("it was written by another version of pimcal")
            return cls(record_id, Learned.from_state(state["learned"])) if state["record"] == record_id else None
        except FileNotFoundError:
            return None
        except Exception as error:  # torch has no error of its own for a damaged file
            logger.warning(
                "%s cannot be read (%s: %s); whether the calibration still fits is measured on the held-out images",
                path,
                type(error).__name__,
                error,
            )
            return None


def memory_file(folder: Path, key: Key) -> Path:
    """Where the answers of a device and model are kept, in a store's folder."""
    return folder / f"accepted-{hashlib.sha256(repr(tuple(key)).encode()).hexdigest()[:12]}.pt"
