"""The two ways to get a cut's columns: the device multiplies, or the host does, on the device's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pimcal.matrices import MatrixView
from pimcal.placement import Block, Placed
from pimcal.tile_array import TileArray

# Input vectors are built for so many samples at a time that they stay below this many elements (4 MB, which caches
# hold; more is not faster).
_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """The blocks, one a group, that hold the same rows and columns of a layer's matrices."""

    start: int
    stop: int
    first: int
    last: int
    blocks: tuple[Block, ...]

    def tile_positions(self) -> list[int]:
        """For each group, which of this cut's tiles holds its block, counted from 0."""
        order = {tile: i for i, tile in enumerate(sorted({block.tile for block in self.blocks}))}
        return [order[block.tile] for block in self.blocks]


def cuts_of(placed: Placed) -> tuple[Cut, ...]:
    """A layer's blocks by the rows and columns that they hold."""
    found: dict[tuple[int, int, int, int], list[Block]] = {}
    for block in placed.blocks:
        found.setdefault((block.start, block.stop, block.first, block.last), []).append(block)
    return tuple(Cut(*key, tuple(sorted(blocks, key=lambda b: b.group))) for key, blocks in found.items())


class Products(Protocol):
    """`run` gives a cut's columns with the reference columns behind them [n, groups, cols + references, l],
    and the sums of the inputs that the gain columns see [n, groups, 1, l], all in device units. Without reference
    columns nobody asks for the sums, which may be empty then."""

    def run(self, view: MatrixView, codes: Tensor, cut: Cut) -> tuple[Tensor, Tensor]: ...


def _rows(block: Block) -> slice:
    return slice(block.tile_row, block.tile_row + block.stop - block.start)


def _cols(block: Block) -> slice:
    return slice(block.tile_col, block.tile_col + block.last - block.first)


class HostProducts:
    """For simulators: torch's kernels on effective weights; references and sums are further output channels."""

    def __init__(self, array: TileArray, load: int) -> None:
        self.array, self.load = array, load

    def run(self, view: MatrixView, codes: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
        weights = {tile: self.array.device.effective_weights(tile) for tile in {b.tile for b in cut.blocks}}
        matrix = torch.stack([self._columns(block, weights[block.tile]) for block in cut.blocks])
        columns = view.product(codes, matrix, cut.start, cut.stop)
        return columns[:, :, :-1], columns[:, :, -1:]

    def _columns(self, block: Block, weights: Tensor) -> Tensor:
        layout = self.array.layouts[self.load, block.tile]
        rows = weights[_rows(block)]
        referenced = rows.new_zeros(rows.shape[0], 1)
        referenced[layout.referenced(block)] = 1.0
        return torch.cat([rows[:, _cols(block)], rows[:, layout.cols :], referenced], dim=1)


class DeviceProducts:
    """For real devices, and simulators of more than weights: input vectors go to the tiles, columns come back."""

    def __init__(self, array: TileArray, load: int) -> None:
        self.array, self.load = array, load

    def run(self, view: MatrixView, codes: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
        sample_elements = codes[:1].numel() * view.row_unit
        chunks = codes.split(max(1, _CHUNK_ELEMENTS // max(1, sample_elements)))
        parts = [self._run_chunk(view.patches(chunk)[..., cut.start : cut.stop], cut) for chunk in chunks]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _run_chunk(self, vectors: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
        columns = self._one_group(vectors, cut) if len(cut.blocks) == 1 else self._groups(vectors, cut)
        return columns, self._inputs_sum(vectors, cut) if self.array.references.count else columns[:, :, :0]

    def _one_group(self, vectors: Tensor, cut: Cut) -> Tensor:
        n, _, positions, _ = vectors.shape
        (block,) = cut.blocks
        outputs = self._read(block, self.array.device.matmul(block.tile, self._drive(vectors, [block])))
        return outputs.unflatten(0, (n, positions)).transpose(1, 2)[:, None]

    def _groups(self, vectors: Tensor, cut: Cut) -> Tensor:
        n, groups, positions, _ = vectors.shape
        width = cut.last - cut.first + self.array.references.count
        columns = vectors.new_empty(n, groups, width, positions)
        for tile in sorted({block.tile for block in cut.blocks}):
            blocks = [block for block in cut.blocks if block.tile == tile]
            outputs = self.array.device.matmul(tile, self._drive(vectors, blocks))
            for block, output in zip(blocks, outputs.unflatten(0, (len(blocks), n * positions)), strict=True):
                columns[:, block.group] = self._read(block, output).unflatten(0, (n, positions)).transpose(1, 2)
        return columns

    def _inputs_sum(self, vectors: Tensor, cut: Cut) -> Tensor:
        """What the gain columns would give with weights of 1 [n, groups, 1, positions]."""
        layouts = {block.tile: self.array.layouts[self.load, block.tile] for block in cut.blocks}
        if all(layout.step == 1 for layout in layouts.values()):
            return vectors.sum(3)[:, :, None]
        sums = [vectors[:, b.group, :, layouts[b.tile].referenced(b)].sum(2) for b in cut.blocks]
        return torch.stack(sums, dim=1)[:, :, None]

    def _drive(self, vectors: Tensor, blocks: list[Block]) -> Tensor:
        """The tile's inputs for one block after the other: its rows get the vectors, all others zero."""
        rows = self.array.layouts[self.load, blocks[0].tile].rows
        if len(blocks) == 1 and vectors.shape[3] == rows:
            return vectors[:, blocks[0].group].flatten(0, 1)
        n, _, positions, _ = vectors.shape
        inputs = vectors.new_zeros(len(blocks), n * positions, rows)
        for i, block in enumerate(blocks):
            inputs[i, :, _rows(block)] = vectors[:, block.group].flatten(0, 1)
        return inputs.flatten(0, 1)

    def _read(self, block: Block, outputs: Tensor) -> Tensor:
        if not self.array.references.count:
            return outputs[:, _cols(block)]
        behind = self.array.layouts[self.load, block.tile].cols
        return torch.cat([outputs[:, _cols(block)], outputs[:, behind:]], dim=1)
