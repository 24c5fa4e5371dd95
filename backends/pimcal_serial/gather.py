"""How maps go through a board's input buffer: which pieces are written when, and which requests gather vectors from
them. Pure functions; see docs/protocol.md for the requests.

The buffer has three segments. While vectors are gathered from one the next but one is written, so that both directions
of the line are busy and hardly a request has to wait for what it depends on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pimcal.patches import Loop
from pimcal_serial.inputs import InputFormat, Int8s
from pimcal_serial.messages import BoardInfo, Capability

SEGMENTS = 3
_MOST_LOOPS = 3
_WRITE_HEAD = 8  # bytes of WRITE_BUFFER's payload before the values
_MOST_VALUES = 0xFFFF


@dataclass(frozen=True, slots=True)
class Overlapping:
    """Vectors in maps [n, size]: the loops of `pimcal.patches.Patches`, on bytes."""

    maps: Int8s
    rows: tuple[Loop, ...]
    positions: tuple[Loop, ...]

    @property
    def grid(self) -> tuple[Loop, ...]:
        """The loops that count vectors: over maps and positions."""
        return (Loop(len(self.maps), self.maps.shape[1]), *self.positions)

    def __len__(self) -> int:
        return math.prod(loop.count for loop in self.grid)

    def gathered(self) -> Int8s:
        """A view [n, *positions, *rows]."""
        loops = (*self.grid, *self.rows)
        shape = [loop.count for loop in loops]
        return np.lib.stride_tricks.as_strided(self.maps, shape, [loop.stride for loop in loops], writeable=False)

    def vectors(self) -> Int8s:
        """All vectors [n * positions, rows]."""
        return self.gathered().reshape(len(self), -1)

    def sample(self, count: int) -> Int8s:
        """Some of the vectors, evenly spaced."""
        which = np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)
        where = np.unravel_index(which, [loop.count for loop in self.grid])
        return self.gathered()[where].reshape(len(which), -1)


@dataclass(frozen=True, slots=True)
class Band:
    """Consecutive vectors `first` to `last`, those of some maps or of some of one map's outer positions.

    What they are made of are the `size` values from `start` on, maps counted through; `grid` counts the vectors.
    """

    first: int
    last: int
    start: int
    size: int
    grid: tuple[Loop, ...]


def bands(board: BoardInfo, overlapping: Overlapping, *, alone: bool = True) -> list[Band] | None:
    """The maps cut into pieces that fit the buffer; None where they cannot be, or loops are too many.

    `alone`: the whole buffer may be used, as no other maps are under way.
    """
    several = len(overlapping.positions) < _MOST_LOOPS  # there is a loop left to count maps
    if len(overlapping.positions) > _MOST_LOOPS or len(loops_of(overlapping.rows)) > _MOST_LOOPS:
        return None
    n, size = overlapping.maps.shape
    if alone and n * size <= board.buffer_bytes and (several or n == 1):
        return _of_maps(overlapping, n)
    room = board.buffer_bytes // SEGMENTS
    if size <= room:
        return _of_maps(overlapping, room // size if several else 1)
    return _of_outer_positions(overlapping, room)


def _of_maps(overlapping: Overlapping, count: int) -> list[Band]:
    """Bands of `count` whole maps."""
    (n, size), vectors = overlapping.maps.shape, _positions(overlapping.positions)
    found = []
    for first in range(0, n, count):
        last = min(n, first + count)
        grid = (Loop(last - first, size), *overlapping.positions)
        found.append(Band(first * vectors, last * vectors, first * size, (last - first) * size, grid))
    return found


def _of_outer_positions(overlapping: Overlapping, room: int) -> list[Band] | None:
    """Bands within maps: as many of the first loop's positions as fit."""
    n, size = overlapping.maps.shape
    outer, *inner = overlapping.positions
    width = _positions(inner)
    reach = 1 + sum((loop.count - 1) * loop.stride for loop in (*inner, *overlapping.rows))
    if reach > room:
        return None
    count = 1 + (room - reach) // max(1, outer.stride)
    found = []
    for first in range(0, n * outer.count, outer.count):
        for begin in range(0, outer.count, count):
            end = min(outer.count, begin + count)
            start = first // outer.count * size + begin * outer.stride
            length = (end - begin - 1) * outer.stride + reach
            grid = (Loop(end - begin, outer.stride), *inner)
            found.append(Band((first + begin) * width, (first + end) * width, start, length, grid))
    return found


def boxes(grid: Sequence[Loop], room: Callable[[], int]) -> Iterator[tuple[int, tuple[Loop, ...]]]:
    """The vectors of a grid in their order, at most `room()` at a time: where each lot begins, and its loops."""
    outer, *inner = grid
    width, start = _positions(inner), 0
    while start < outer.count:
        most = room()
        if inner and width > most:
            for offset, loops in boxes(inner, room):
                yield start * outer.stride + offset, (Loop(1, outer.stride), *loops)
            start += 1
        else:
            count = min(outer.count - start, max(1, most // width))
            yield start * outer.stride, (Loop(count, outer.stride), *inner)
            start += count


def loops_of(loops: Sequence[Loop]) -> tuple[Loop, ...]:
    """The loops without those that count to 1."""
    return tuple(loop for loop in loops if loop.count != 1)


def buffer_format(board: BoardInfo, values: Int8s) -> InputFormat:
    """The format in which `values` [count] are shortest, of those that the board has."""
    costs = {InputFormat.INT8: 1.0}
    if Capability.INT4_INPUTS in board.capabilities and np.abs(values.astype(np.int16)).max(initial=0) <= 7:
        costs[InputFormat.INT4] = 0.5
    if Capability.ZERO_SKIPPING in board.capabilities:
        costs[InputFormat.ZERO_SKIPPING] = 1 / 8 + np.count_nonzero(values) / max(1, len(values))
    return min(costs, key=lambda form: (costs[form], form))


def write_spans(values: Int8s, form: InputFormat, payload: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """First and last-plus-one of the values that share a WRITE_BUFFER of at most `payload()` bytes."""
    match form:
        case InputFormat.INT8:
            each = np.ones(len(values))
        case InputFormat.INT4:
            each = np.full(len(values), 0.5)
        case InputFormat.ZERO_SKIPPING:
            each = 1 / 8 + (values != 0)
    ends, start = np.cumsum(each), 0
    while start < len(values):
        before = ends[start - 1] if start else 0.0
        room = payload() - _WRITE_HEAD - 1  # the last byte may be used in part
        end = int(np.searchsorted(ends, before + room, side="right"))
        end = max(start + 1, min(end, start + _MOST_VALUES, len(values)))
        yield start, end
        start = end


def _positions(loops: Sequence[Loop]) -> int:
    return math.prod(loop.count for loop in loops)
