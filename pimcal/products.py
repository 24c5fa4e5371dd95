"""The two ways to get a cut's columns: the device multiplies, or the host does, on the device's weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pimcal.matrices import MatrixView
from pimcal.patches import PartProduct, Patches, TilePart
from pimcal.placement import Block, Placed
from pimcal.tile_array import TileArray

# Input vectors are built for so many samples at a time that they stay below this many elements (4 MB, which caches
# hold; more is not faster).
_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """The blocks, one a group, that hold the same rows and columns of a layer's matrices at the same turn.

    Where a layer takes several turns, a cut may have blocks for some of its groups only.
    """

    load: int
    start: int
    stop: int
    first: int
    last: int
    blocks: tuple[Block, ...]

    @property
    def groups(self) -> list[int]:
        return [block.group for block in self.blocks]

    @property
    def tiles(self) -> tuple[int, ...]:
        return tuple(sorted({block.tile for block in self.blocks}))

    def tile_positions(self) -> list[int]:
        """For each group, which of this cut's tiles holds its block, counted from 0."""
        order = {tile: i for i, tile in enumerate(self.tiles)}
        return [order[block.tile] for block in self.blocks]


def cuts_of(placed: Placed) -> tuple[Cut, ...]:
    """A layer's blocks by the rows and columns that they hold, in the order of the turns."""
    found: dict[tuple[int, int, int, int, int], list[Block]] = {}
    for block in placed.blocks:
        found.setdefault((block.load, block.start, block.stop, block.first, block.last), []).append(block)
    return tuple(Cut(*key, tuple(sorted(blocks, key=lambda b: b.group))) for key, blocks in found.items())


class Products(Protocol):
    """`run` gives a cut's columns with the reference columns behind them [n, blocks, cols + references, l],
    and the sums of the inputs that the gain columns see [n, blocks, 1, l], all in device units, in the order of
    `cut.blocks`. Without reference columns nobody asks for the sums, which may be empty then."""

    def run(self, view: MatrixView, codes: Tensor, cut: Cut) -> tuple[Tensor, Tensor]: ...


def _rows(block: Block) -> slice:
    return slice(block.tile_row, block.tile_row + block.stop - block.start)


def _cols(block: Block) -> slice:
    return slice(block.tile_col, block.tile_col + block.last - block.first)


class HostProducts:
    """For simulators: torch's kernels on effective weights; references and sums are further output channels."""

    def __init__(self, array: TileArray) -> None:
        self.array = array

    def run(self, view: MatrixView, codes: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
        weights = {tile: self.array.device.effective_weights(tile) for tile in {b.tile for b in cut.blocks}}
        matrix = torch.stack([self._columns(block, weights[block.tile], cut.load) for block in cut.blocks])
        if len(cut.blocks) == view.groups:
            columns = view.product(codes, matrix, cut.start, cut.stop)
        else:  # torch's kernels take all groups at once
            every = matrix.new_zeros(view.groups, *matrix.shape[1:])
            every[cut.groups] = matrix
            columns = view.product(codes, every, cut.start, cut.stop)[:, cut.groups]
        return columns[:, :, :-1], columns[:, :, -1:]

    def _columns(self, block: Block, weights: Tensor, load: int) -> Tensor:
        layout = self.array.layouts[load, block.tile]
        rows = weights[_rows(block)]
        referenced = rows.new_zeros(rows.shape[0], 1)
        referenced[layout.referenced(block)] = 1.0
        return torch.cat([rows[:, _cols(block)], rows[:, layout.cols :], referenced], dim=1)


class DeviceProducts:
    """For real devices, and simulators of more than weights: input vectors go to the tiles, columns come back.

    A device that can use parts of tiles gets those of all blocks at once; others get all blocks of a tile one behind
    the other, with zeros for the rows that a block does not have.
    """

    def __init__(self, array: TileArray) -> None:
        self.array = array
        self._parts, self._patches = array.device.capabilities.parts, array.device.capabilities.patches

    def run(self, view: MatrixView, codes: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
        columns = self._from_patches(view, codes, cut) if self._patches else None
        if columns is None:
            chunks = [(self._from_vectors(v, cut), self._inputs_sum(v, cut)) for v in _vectors(view, codes, cut)]
            return _joined([chunk[0] for chunk in chunks]), _joined([chunk[1] for chunk in chunks])
        if not self.array.references.count:
            return columns, columns[:, :, :0]
        return columns, _joined([self._inputs_sum(v, cut) for v in _vectors(view, codes, cut)])

    # patches: overlapping vectors, named instead of copied out

    def _from_patches(self, view: MatrixView, codes: Tensor, cut: Cut) -> Tensor | None:
        """The columns, or None where the device has to get the vectors themselves."""
        if not (self._parts or self._is_whole_tile(cut)):
            return None
        found = [view.overlapping(codes, block.group, cut.start, cut.stop) for block in cut.blocks]
        patches = [p for p in found if p is not None]
        if len(patches) < len(found):
            return None
        return _by_group(self._products(cut, patches), len(codes), patches[0].positions_per_map)

    def _is_whole_tile(self, cut: Cut) -> bool:
        if len(cut.blocks) > 1:
            return False
        (block,) = cut.blocks
        layout = self.array.layouts[cut.load, block.tile]
        return self._part(block, cut) == TilePart(0, layout.rows, 0, layout.cols + self.array.references.count)

    # vectors

    def _from_vectors(self, vectors: Tensor, cut: Cut) -> Tensor:
        if not self._parts:
            return self._from_tiles(vectors, cut)
        inputs = [vectors[:, block.group].flatten(0, 1) for block in cut.blocks]
        return _by_group(self._products(cut, inputs), len(vectors), vectors.shape[2])

    def _from_tiles(self, vectors: Tensor, cut: Cut) -> Tensor:
        n, _, positions, _ = vectors.shape
        width = cut.last - cut.first + self.array.references.count
        columns = vectors.new_empty(n, len(cut.blocks), width, positions)
        for tile in cut.tiles:
            places = [i for i, block in enumerate(cut.blocks) if block.tile == tile]
            blocks = [cut.blocks[i] for i in places]
            outputs = self.array.device.matmul(tile, self._drive(vectors, blocks, cut))
            if len(cut.blocks) == 1:
                return _by_group([self._read(blocks[0], cut, outputs)], n, positions)
            for i, output in zip(places, outputs.unflatten(0, (len(blocks), n * positions)), strict=True):
                read = self._read(cut.blocks[i], cut, output)
                columns[:, i] = read.unflatten(0, (n, positions)).transpose(1, 2)
        return columns

    def _inputs_sum(self, vectors: Tensor, cut: Cut) -> Tensor:
        """What the gain columns would give with weights of 1 [n, blocks, 1, positions]; empty without references."""
        if not self.array.references.count:
            return vectors[:, :, :0, :0]
        layouts = {block.tile: self.array.layouts[cut.load, block.tile] for block in cut.blocks}
        if all(layout.step == 1 for layout in layouts.values()):
            return vectors.sum(3)[:, cut.groups, None]
        sums = [vectors[:, b.group, :, layouts[b.tile].referenced(b)].sum(2) for b in cut.blocks]
        return torch.stack(sums, dim=1)[:, :, None]

    def _drive(self, vectors: Tensor, blocks: list[Block], cut: Cut) -> Tensor:
        """The tile's inputs for one block after the other: its rows get the vectors, all others zero."""
        rows = self.array.layouts[cut.load, blocks[0].tile].rows
        if len(blocks) == 1 and vectors.shape[3] == rows:
            return vectors[:, blocks[0].group].flatten(0, 1)
        n, _, positions, _ = vectors.shape
        inputs = vectors.new_zeros(len(blocks), n * positions, rows)
        for i, block in enumerate(blocks):
            inputs[i, :, _rows(block)] = vectors[:, block.group].flatten(0, 1)
        return inputs.flatten(0, 1)

    def _read(self, block: Block, cut: Cut, outputs: Tensor) -> Tensor:
        if not self.array.references.count:
            return outputs[:, _cols(block)]
        behind = self.array.layouts[cut.load, block.tile].cols
        return torch.cat([outputs[:, _cols(block)], outputs[:, behind:]], dim=1)

    # parts of tiles

    def _products(self, cut: Cut, inputs: Sequence[Tensor | Patches]) -> list[Tensor]:
        """Each block's columns, with those of the references behind them [vectors, cols + references]."""
        pairs = zip(cut.blocks, inputs, strict=True)
        references = self.array.references.count
        ends = (cut.last - cut.first, references) if references else None
        products = [PartProduct(block.tile, x, self._part(block, cut), ends) for block, x in pairs]
        return [self._with_references(cut, output) for output in self.array.device.matmul_parts(products)]

    def _with_references(self, cut: Cut, outputs: Tensor) -> Tensor:
        width, references = cut.last - cut.first, self.array.references.count
        if outputs.shape[1] == width + references:
            return outputs
        return torch.cat([outputs[:, :width], outputs[:, -references:]], dim=1)

    def _part(self, block: Block, cut: Cut) -> TilePart:
        """Reference columns are the tile's last: with them, what lies between may be read, too."""
        cols = block.last - block.first
        if self.array.references.count:
            layout = self.array.layouts[cut.load, block.tile]
            cols = layout.cols + self.array.references.count - block.tile_col
        return TilePart(block.tile_row, block.stop - block.start, block.tile_col, cols)


def _vectors(view: MatrixView, codes: Tensor, cut: Cut) -> Iterator[Tensor]:
    """The cut's input vectors [n, groups, positions, rows], so many samples at a time."""
    sample_elements = codes[:1].numel() * view.row_unit
    for chunk in codes.split(max(1, _CHUNK_ELEMENTS // max(1, sample_elements))):
        yield view.patches(chunk)[..., cut.start : cut.stop]


def _by_group(outputs: list[Tensor], n: int, positions: int) -> Tensor:
    """Columns of one group after the other, each [n * positions, cols], as [n, groups, cols, positions]."""
    columns = [output.unflatten(0, (n, positions)).transpose(1, 2) for output in outputs]
    return columns[0][:, None] if len(columns) == 1 else torch.stack(columns, dim=1)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
