"""Where each matrix sits on the device: cut to tile size, packed, and told to the user.

Blocks are rectangles of one layer's matrix. Several may share a tile when they do not overlap: a product
drives one block's rows only and reads its columns only, so blocks may stand beside or above each other.
A network that does not fit at once is split into loads, which take turns on the device; a layer that does not fit
alone takes several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pimcal.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """What a layer asks of the device: `groups` matrices of `rows` x `cols`."""

    name: str
    groups: int
    rows: int
    cols: int
    row_unit: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """Rows `start:stop` and columns `first:last` of one group's matrix, at (`tile_row`, `tile_col`) of a tile.

    `load` is the turn on the device that it belongs to.
    """

    group: int
    start: int
    stop: int
    first: int
    last: int
    tile: int
    tile_row: int
    tile_col: int
    load: int = 0


@dataclass(frozen=True, slots=True)
class Placed:
    """A layer's blocks, in the order of their loads."""

    shape: MatrixShape
    blocks: tuple[Block, ...]

    @property
    def loads(self) -> tuple[int, ...]:
        """More than one where the layer is larger than the device."""
        return tuple(sorted({block.load for block in self.blocks}))

    @property
    def tiles(self) -> tuple[int, ...]:
        return tuple(sorted({block.tile for block in self.blocks}))

    @property
    def cells(self) -> int:
        return self.shape.groups * self.shape.rows * self.shape.cols


@dataclass(frozen=True, slots=True)
class Limits:
    """The device's room. `None` is unbounded; `references` columns of each tile are spoken for."""

    tiles: int | None
    rows: int | None
    cols: int | None
    references: int = 0

    @property
    def usable_cols(self) -> float:
        return math.inf if self.cols is None else self.cols - self.references


@dataclass(slots=True)
class _Shelf:
    """A band of rows in a tile that is filled from the left."""

    top: int
    height: int
    used: int = 0


@dataclass(slots=True)
class _Tile:
    index: int
    shelves: list[_Shelf] = field(default_factory=list)
    closed: bool = False

    def fit(self, height: int, width: int, limits: Limits) -> tuple[int, int] | None:
        """The corner where a rectangle goes, its place taken; None where there is no room."""
        if self.closed:
            return None
        for shelf in self.shelves:
            if height <= shelf.height and shelf.used + width <= limits.usable_cols:
                shelf.used += width
                return shelf.top, shelf.used - width
        top = sum(shelf.height for shelf in self.shelves)
        room = math.inf if limits.rows is None else limits.rows - top
        if self.shelves and limits.rows is None:
            room = 0  # without a row limit a tile is one band: there is always another tile
        if height > room or width > limits.usable_cols:
            return None
        self.shelves.append(_Shelf(top, height, width))
        return top, 0


def _cuts(size: int, limit: float, unit: int = 1) -> list[tuple[int, int]]:
    """`size` cut into pieces of at most `limit`, at multiples of `unit` where that makes no more pieces."""
    if size <= limit:
        return [(0, size)]
    step = int(limit) // unit * unit
    if step == 0 or math.ceil(size / step) > math.ceil(size / limit):
        step = int(limit)
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def _rectangles(shape: MatrixShape, limits: Limits) -> Iterator[tuple[int, int, int, int, int]]:
    row_limit = math.inf if limits.rows is None else limits.rows
    for start, stop in _cuts(shape.rows, row_limit, shape.row_unit):
        for first, last in _cuts(shape.cols, limits.usable_cols):
            for group in range(shape.groups):
                yield group, start, stop, first, last


class Packer:
    """Cuts and packs layers in the order in which they come, load by load.

    With an unlimited number of tiles each layer gets tiles of its own; otherwise layers share tiles, and a layer that
    finds no room opens the next load. One that is larger than the whole device goes on in further loads.

    A load begins with the tile behind the last one of the load before: it is free the longest, so that it can be
    programmed while the other load still computes. `tile_of` tells which tile of the device is the n-th.
    """

    def __init__(self, limits: Limits, tile_of: Callable[[int], int] = lambda number: number) -> None:
        """Raises ConfigError if the references leave no column."""
        if limits.usable_cols < 1:
            raise ConfigError(
                f"references: {limits.references} reference columns leave no column free in tiles of "
                f"{limits.cols}; reserve fewer, or set tiles.cols higher"
            )
        self._tile_of = tile_of
        self.limits = limits
        self.load = 0
        self.tiles: list[_Tile] = []  # of this load
        self._start = 0  # the first of them, as long as the device has tiles enough

    def add(self, shape: MatrixShape, *, apart: bool = False) -> Placed:
        """Place one more layer; `apart` from all that is there, on tiles of its own."""
        return Placed(shape, tuple(self._blocks(shape, apart)))

    def _blocks(self, shape: MatrixShape, apart: bool) -> list[Block]:
        if self.limits.tiles is None:
            self._close_tiles()
        elif apart:
            self.tiles = [replace(tile, closed=True) for tile in self.tiles]
        others = len(self.tiles)
        blocks = self._pack(shape)
        if blocks is None and others:
            del self.tiles[others:]
            self._open_load()
            blocks = self._pack(shape)
        if blocks is None:  # cuts at whole channels waste rows, which may be all that is missing
            self.tiles = []
            blocks = self._pack(replace(shape, row_unit=1))
        if blocks is None:
            self.tiles = []
            blocks = self._pack(shape, over_loads=True)
        assert blocks is not None  # a block is no larger than a tile
        return blocks

    def _open_load(self) -> None:
        self.load += 1
        self._close_tiles()

    def _close_tiles(self) -> None:
        """What comes next gets other tiles than what is there."""
        self._start, self.tiles = self._number(len(self.tiles)), []

    def _number(self, position: int) -> int:
        number = self._start + position
        return number if self.limits.tiles is None else number % self.limits.tiles

    def _pack(self, shape: MatrixShape, *, over_loads: bool = False) -> list[Block] | None:
        """The layer's blocks; where the device is full, further loads with `over_loads`, else None."""
        blocks = []
        oldest = 0  # tiles before it had no room for a rectangle of the same size: do not ask them again
        last_size = (0, 0)
        for group, start, stop, first, last in _rectangles(shape, self.limits):
            size = (stop - start, last - first)
            oldest = oldest if size == last_size else 0
            last_size = size
            found = self._find(size, oldest)
            if found is None and over_loads:
                self._open_load()
                found = self._find(size, 0)
            if found is None:
                return None
            oldest, corner = found
            blocks.append(Block(group, start, stop, first, last, self.tiles[oldest].index, *corner, self.load))
        return blocks

    def _find(self, size: tuple[int, int], oldest: int) -> tuple[int, tuple[int, int]] | None:
        """The first tile from `oldest` on with room for a rectangle, a new one if need be, and its corner there."""
        for number in range(oldest, len(self.tiles)):
            corner = self.tiles[number].fit(*size, self.limits)
            if corner is not None:
                return number, corner
        if self.limits.tiles is not None and len(self.tiles) >= self.limits.tiles:
            return None
        self.tiles.append(_Tile(self._tile_of(self._number(len(self.tiles)))))
        corner = self.tiles[-1].fit(*size, self.limits)
        return None if corner is None else (len(self.tiles) - 1, corner)


def place(shapes: Sequence[MatrixShape], limits: Limits) -> list[Placed]:
    """Cut and pack the layers in their order; see `Packer`.

    Raises ConfigError if the references leave no column.
    """
    packer = Packer(limits)
    return [packer.add(shape) for shape in shapes]
