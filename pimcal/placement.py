"""Where each matrix sits on the device: cut to tile size, packed, and told to the user.

Blocks are rectangles of one layer's matrix. Several may share a tile when they do not overlap: a product
drives one block's rows only and reads its columns only, so blocks may stand beside or above each other.
A network that does not fit at once is split into loads, which take turns on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
    """Rows `start:stop` and columns `first:last` of one group's matrix, at (`tile_row`, `tile_col`) of a tile."""

    group: int
    start: int
    stop: int
    first: int
    last: int
    tile: int
    tile_row: int
    tile_col: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A layer's blocks, and the load (turn on the device) that they belong to."""

    shape: MatrixShape
    load: int
    blocks: tuple[Block, ...]

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

    def fit(self, height: int, width: int, limits: Limits) -> tuple[int, int] | None:
        """The corner where a rectangle goes, its place taken; None where there is no room."""
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


def _pack_layer(shape: MatrixShape, limits: Limits, open_tiles: list[_Tile], next_tile: int) -> list[Block] | None:
    """The layer's blocks on `open_tiles`, to which new tiles are added; None when the device is full."""
    blocks = []
    oldest = 0  # tiles before it had no room for a rectangle of the same size: do not ask them again
    last_size = (0, 0)
    for group, start, stop, first, last in _rectangles(shape, limits):
        size = (stop - start, last - first)
        oldest = oldest if size == last_size else 0
        last_size = size
        corner = None
        while oldest < len(open_tiles) and corner is None:
            corner = open_tiles[oldest].fit(*size, limits)
            oldest += corner is None
        if corner is None:
            if limits.tiles is not None and next_tile + len(open_tiles) >= limits.tiles:
                return None
            open_tiles.append(_Tile(next_tile + len(open_tiles)))
            corner = open_tiles[oldest].fit(*size, limits)
        if corner is None:
            raise ConfigError(f"layer {shape.name}: a block of {size} does not fit an empty tile of {limits}")
        blocks.append(Block(group, start, stop, first, last, open_tiles[oldest].index, *corner))
    return blocks


def place(shapes: Sequence[MatrixShape], limits: Limits) -> list[Placed]:
    """Cut and pack the layers in their order.

    With an unlimited number of tiles each layer gets tiles of its own; otherwise layers share tiles, and a
    layer that finds no room opens the next load.

    Raises ConfigError where the references leave no column, or a layer is larger than the whole device.
    """
    if limits.usable_cols < 1:
        raise ConfigError(
            f"references: {limits.references} reference columns leave no column free in tiles of "
            f"{limits.cols}; reserve fewer, or set tiles.cols higher"
        )
    placed: list[Placed] = []
    open_tiles: list[_Tile] = []
    load, next_tile = 0, 0
    for shape in shapes:
        if limits.tiles is None:
            next_tile += len(open_tiles)
            open_tiles = []
        alone = not open_tiles
        blocks = _pack_layer(shape, limits, open_tiles, next_tile)
        if blocks is None and not alone:
            load, open_tiles = load + 1, []
            blocks = _pack_layer(shape, limits, open_tiles, 0)
        if blocks is None:  # cuts at whole channels waste rows, which may be all that is missing
            open_tiles = []
            blocks = _pack_layer(replace(shape, row_unit=1), limits, open_tiles, 0)
        if blocks is None:
            raise ConfigError(_too_large(shape, limits))
        placed.append(Placed(shape, load, tuple(blocks)))
    return placed


def _too_large(shape: MatrixShape, limits: Limits) -> str:
    groups = f"{shape.groups} x " if shape.groups > 1 else ""
    rows = "unlimited" if limits.rows is None else limits.rows
    cols = "unlimited" if limits.cols is None else limits.cols
    return (
        f"layer {shape.name}: its matrix ({groups}{shape.rows} x {shape.cols}) is larger than the whole device "
        f"({limits.tiles} tiles of {rows} x {cols}, {limits.references} reference columns each); "
        f'keep it digital with `host: ["{shape.name}"]`, or use a device with more tiles'
    )
