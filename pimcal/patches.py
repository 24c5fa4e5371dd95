"""What a product on a tile needs beyond plain vectors: the part of the tile it uses, and vectors that overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TilePart:
    """The rows of a tile that get inputs, while all others get 0, and the columns that are read."""

    first_row: int
    rows: int
    first_col: int
    cols: int


@dataclass(frozen=True, slots=True)
class Loop:
    """`count` addresses, `stride` values apart."""

    count: int
    stride: int


@dataclass(frozen=True, slots=True)
class Patches:
    """Input vectors as places in maps, so that what overlaps is there once.

    `maps` [n, size]. The vector at positions (p, q, ...) of a map has at row (r, s, ...) the value at the sum of index
    times stride over all loops; the last loop counts fastest, both for the order of rows and for that of positions.
    """

    maps: Tensor
    rows: tuple[Loop, ...]
    positions: tuple[Loop, ...]

    @property
    def positions_per_map(self) -> int:
        return math.prod(loop.count for loop in self.positions)

    def gathered(self) -> Tensor:
        """A view [n, *positions, *rows], one dimension a loop."""
        loops = (*self.positions, *self.rows)
        sizes, strides = [loop.count for loop in loops], [loop.stride for loop in loops]
        maps = self.maps.contiguous()
        return maps.as_strided([len(maps), *sizes], [maps.shape[1], *strides], maps.storage_offset())

    def vectors(self) -> Tensor:
        """The vectors themselves [n * positions, rows]."""
        rows = math.prod(loop.count for loop in self.rows)
        return self.gathered().reshape(-1, rows)

    def split(self, maps: int) -> Iterator[Patches]:
        """The same, so many maps at a time."""
        return (replace(self, maps=part) for part in self.maps.split(maps))


@dataclass(frozen=True, slots=True)
class PartProduct:
    """`inputs`, vectors [n, part.rows] or patches of them, times a part of a tile.

    `ends`: only so many of the part's first and last columns are asked for; those between may be left out.
    """

    tile: int
    inputs: Tensor | Patches
    part: TilePart
    ends: tuple[int, int] | None = None
