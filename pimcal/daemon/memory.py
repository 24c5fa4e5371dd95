"""What the engine must find again after a restart and the store has no place for: the accepted answers."""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pimcal.files import write_atomically
from pimcal.recalibration.probe import Accepted, ProbeSettings
from pimcal.recalibration.state import Conditions
from pimcal.store import Key

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the tiles answered when a record was found to be right, under which conditions, and its metric then.

    `sensitivity`: what the probe takes for drift since, as some changes were found to cost nothing.
    """

    record_id: str
    accepted: Accepted
    under: Conditions | None
    level: float | None
    sensitivity: ProbeSettings

    def save(self, path: Path) -> None:
        """Raises StorageError; what was there before is untouched then."""
        under = None if self.under is None else [self.under.at_s, self.under.telemetry]
        state = {
            "record": self.record_id,
            "level": self.level,
            "under": under,
            "accepted": self.accepted.state_dict(),
            "sensitivity": asdict(self.sensitivity),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Path, record_id: str) -> Memory | None:
        """None where nothing is kept for this record; it is told where that is because the file is damaged."""
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
            if state["record"] != record_id:
                return None
            under = None if state["under"] is None else Conditions(*state["under"])
            sensitivity = ProbeSettings(**state["sensitivity"])
            return cls(record_id, Accepted.from_state(state["accepted"]), under, state["level"], sensitivity)
        except FileNotFoundError:
            return None
        except Exception as error:  # torch has no error of its own for a damaged file
            logger.warning(
                "%s cannot be read (%s: %s); the tiles' answers are taken anew", path, type(error).__name__, error
            )
            return None


def memory_file(folder: Path, key: Key) -> Path:
    """Where the answers of a device and model are kept, in a store's folder."""
    return folder / f"accepted-{hashlib.sha256(repr(tuple(key)).encode()).hexdigest()[:12]}.pt"
