"""Global drift compensation: one gain a tile, from what it answers now against what it answered when programmed.

Memory cells lose conductance with time, on the whole all by the same factor. A tile's readout is the mean magnitude
of its products with one-hot inputs; the gain, readout when programmed / readout now, multiplies what it answers.
It needs no image. What drifts from cell to cell stays.

Source: Joshi et al., "Accurate deep neural network inference using computational phase-change memory", Nat. Commun. 11,
2473 (2020), with the readout of IBM's aihwkit (`GlobalDriftCompensation`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pimcal.errors import DataError, UsageError

logger = logging.getLogger(__name__)

Readout = Callable[[int, int], float]

_CHUNK = 256  # one-hot inputs at a time: a tile may have thousands of rows


class DriftCompensation:
    """The gains of a device's tiles, and what they are found with. `read(tile, rows)` measures a tile without its gain.

    While it is `watching`, each tile is measured as soon as it is programmed.
    """

    def __init__(self, read: Readout, *, watching: bool) -> None:
        self.gains: dict[int, float] = {}
        self.watching = watching
        self._read = read
        self._rows: dict[int, int] = {}
        self._baselines: dict[int, float] = {}

    def programmed(self, tile: int, rows: int) -> None:
        """A tile has new weights: neither its gain nor its former readout says anything about them."""
        self._rows[tile] = rows
        self.gains.pop(tile, None)
        self._baselines.pop(tile, None)
        if self.watching:
            self._baselines[tile] = self._read(tile, rows)

    def watch(self) -> None:
        """Measure the tiles that were not measured when they were programmed, and from now on all that will be."""
        self.watching = True
        for tile, rows in self._rows.items():
            if tile not in self._baselines:
                self._baselines[tile] = self._read(tile, rows)

    def compensate(self) -> dict[int, float]:
        """Measure all tiles and set their gains, or none of them. Raises UsageError, DataError as `Device` says."""
        unknown = [str(tile) for tile in self._rows if tile not in self._baselines]
        if unknown:
            raise UsageError(
                f"tiles {', '.join(unknown)} were not measured when they were programmed, so their drift is not known; "
                "call watch_drift() right after deploying, or deploy again"
            )
        gains = {
            tile: gain_of(tile, self._baselines[tile], self._read(tile, rows)) for tile, rows in self._rows.items()
        }
        self.gains = gains
        return dict(gains)

    def clear(self) -> None:
        """All gains are 1 again; the readouts stay."""
        self.gains = {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "watching": self.watching,
            "rows": dict(self._rows),
            "baselines": dict(self._baselines),
            "gains": dict(self.gains),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.watching = self.watching or state.get("watching", False)
        self._rows = dict(state.get("rows", {}))
        self._baselines = dict(state.get("baselines", {}))
        self.gains = dict(state.get("gains", {}))


def gain_of(tile: int, baseline: float, now: float) -> float:
    """baseline / now; 1 where either is zero, which tells nothing of drift. Raises DataError for NaN and infinity."""
    if not (math.isfinite(baseline) and math.isfinite(now)):
        raise DataError(
            f"tile {tile} answered {baseline} when it was programmed and {now} now, in the mean over one-hot inputs: "
            "its drift cannot be compensated; check the device"
        )
    if baseline and not now:
        logger.warning("tile %d answers nothing but zeros now: its drift is not compensated", tile)
    return baseline / now if baseline and now else 1.0


def one_hot_inputs(rows: int, value: int, torch_device: torch.device) -> Iterator[Tensor]:
    """`value` times the unit matrix [rows, rows], some rows at a time."""
    for numbers in torch.arange(rows, device=torch_device).split(_CHUNK):
        yield (one_hot(numbers, rows) * value).float()


def mean_magnitude(outputs: Iterable[Tensor]) -> float:
    """The mean of |output| over all elements of all parts."""
    total, count = 0.0, 0
    for part in outputs:
        total += float(part.abs().sum(dtype=torch.float64))
        count += part.numel()
    return total / count
