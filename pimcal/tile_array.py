"""What a deployment keeps on the tiles: it builds each tile's image, programs it, and knows what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pimcal.device import Device
from pimcal.placement import Block, Placed
from pimcal.quantize import largest_code
from pimcal.references import ReferenceColumns

Source = Callable[[], Tensor]  # gives a layer's matrices in device units, [groups, rows, cols]


@dataclass(slots=True)
class TileLayout:
    """A tile's programmed extent; its reference columns start at `cols`, their constant is known once programmed.

    Every `step`-th row of a gain column holds the constant.
    """

    rows: int = 0
    cols: int = 0
    constant: float = 1.0
    readable_rows: int | None = None

    @property
    def step(self) -> int:
        return 1 if self.readable_rows is None else -(-self.rows // max(1, self.readable_rows))

    def referenced(self, block: Block) -> slice:
        """Which of a block's rows the gain columns hold the constant in."""
        return slice(-block.tile_row % self.step, None, self.step)

    def cover(self, block: Block) -> None:
        self.rows = max(self.rows, block.tile_row + block.stop - block.start)
        self.cols = max(self.cols, block.tile_col + block.last - block.first)


class TileArray:
    """The tiles of one deployment. `ensure` programs a load when it is not the one on the device."""

    def __init__(self, device: Device, references: ReferenceColumns) -> None:
        self.device = device
        self.references = references
        self._owner = next(device.owners)
        self._parts: dict[int, list[tuple[Placed, Source]]] = {}
        self.layouts: dict[tuple[int, int], TileLayout] = {}  # by load and tile

    def add(self, placed: Placed, source: Source) -> None:
        """Make a layer's blocks part of the array; `source` is asked for its matrices at each programming."""
        self._parts.setdefault(placed.load, []).append((placed, source))
        for block in placed.blocks:
            layout = TileLayout(readable_rows=self.device.capabilities.readable_rows)
            self.layouts.setdefault((placed.load, block.tile), layout).cover(block)

    @property
    def loads(self) -> int:
        """How many turns the network takes on the device; more than one means it is streamed."""
        return len(self._parts)

    def ensure(self, load: int) -> None:
        """Program the tiles of `load` unless they are on the device already."""
        self.device.check_open()
        if self.device.resident != (self._owner, load):
            self.device.resident = None  # an interrupted programming leaves no load resident
            for tile, image in self._images(load):
                self.device.program(tile, image.t())
            self.device.resident = (self._owner, load)

    @property
    def resident(self) -> int | None:
        """The load that is on the device; None where another network is there, or none."""
        owner, load = self.device.resident or (None, None)
        return load if owner == self._owner else None

    def adopt(self, load: int | None) -> None:
        """Take it that `load` is on the device: a simulator's state was restored with it."""
        if load is not None:
            for _ in self._images(load):  # tells the constants of its reference columns
                pass
        self.device.resident = None if load is None else (self._owner, load)

    def _images(self, load: int) -> Iterator[tuple[int, Tensor]]:
        """Each tile and what goes to it, transposed ([cols, rows]), as soon as its last block is written."""
        missing = Counter(block.tile for placed, _ in self._parts[load] for block in placed.blocks)
        images: dict[int, Tensor] = {}
        for placed, source in self._parts[load]:
            matrices = source().cpu()
            for block in placed.blocks:
                if block.tile not in images:
                    images[block.tile] = self._empty(self.layouts[load, block.tile])
                _write(images[block.tile], block, matrices)
                missing[block.tile] -= 1
                if not missing[block.tile]:
                    yield block.tile, self._finished(images.pop(block.tile), self.layouts[load, block.tile])

    def _empty(self, layout: TileLayout) -> Tensor:
        return torch.zeros(layout.cols + self.references.count, layout.rows, dtype=torch.float32, device="cpu")

    def _finished(self, image: Tensor, layout: TileLayout) -> Tensor:
        """The image with its reference columns; the layout learns their constant."""
        layout.constant = self._constant(image)
        image[layout.cols + self.references.offset :, :: layout.step] = layout.constant
        return image

    def _constant(self, image: Tensor) -> float:
        """The reference columns' weight: as large as the tile's largest, so that noise weighs least on it."""
        capabilities = self.device.capabilities
        if capabilities.weight_unit == "full_scale":
            bits = capabilities.weight_bits
            return float(largest_code(bits, signed=capabilities.signed_weights)) if bits else 1.0
        return float(image.abs().amax()) or 1.0


def _write(image: Tensor, block: Block, matrices: Tensor) -> None:
    """Put a block into a tile's image, which is kept transposed ([cols, rows]) as torch's kernels want it."""
    part = matrices[block.group, block.start : block.stop, block.first : block.last].t()
    image[block.tile_col : block.tile_col + part.shape[0], block.tile_row : block.tile_row + part.shape[1]] = part
