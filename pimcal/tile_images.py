"""What goes onto each tile at each load, built from the layers' matrices one layer at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor

from pimcal.backend import Capabilities
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


class TileImages:
    """The images of one network. Its copies share them, and with them the reference columns' constants."""

    def __init__(self, capabilities: Capabilities, references: ReferenceColumns) -> None:
        self.layouts: dict[tuple[int, int], TileLayout] = {}  # by load and tile
        self._capabilities, self._references = capabilities, references
        self._parts: dict[int, list[tuple[list[Block], Source]]] = {}  # by load

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def add(self, placed: Placed, source: Source) -> None:
        """Make a layer's blocks part of the images; `source` is asked for its matrices whenever they are built."""
        for load, blocks in groupby(placed.blocks, key=lambda block: block.load):
            self._parts.setdefault(load, []).append(([*blocks], source))
        for block in placed.blocks:
            layout = TileLayout(readable_rows=self._capabilities.readable_rows)
            self.layouts.setdefault((block.load, block.tile), layout).cover(block)

    @property
    def loads(self) -> int:
        return len(self._parts)

    def tiles(self, load: int) -> set[int]:
        """The tiles that a load uses."""
        return {block.tile for blocks, _ in self._parts[load] for block in blocks}

    def build(self, load: int, tiles: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """Each of `tiles` and what goes to it, transposed ([cols, rows]), as soon as its last block is written.

        Its layout learns the constant of the reference columns.
        """
        parts = [([b for b in blocks if b.tile in tiles], source) for blocks, source in self._parts[load]]
        missing = Counter(block.tile for blocks, _ in parts for block in blocks)
        images: dict[int, Tensor] = {}
        for blocks, source in parts:
            matrices = source().cpu() if blocks else torch.empty(0)
            for block in blocks:
                if block.tile not in images:
                    images[block.tile] = self._empty(self.layouts[load, block.tile])
                _write(images[block.tile], block, matrices)
                missing[block.tile] -= 1
                if not missing[block.tile]:
                    yield block.tile, self._finished(images.pop(block.tile), self.layouts[load, block.tile])

    def _empty(self, layout: TileLayout) -> Tensor:
        return torch.zeros(layout.cols + self._references.count, layout.rows, dtype=torch.float32, device="cpu")

    def _finished(self, image: Tensor, layout: TileLayout) -> Tensor:
        """The image with its reference columns; the layout learns their constant."""
        layout.constant = self._constant(image)
        image[layout.cols + self._references.offset :, :: layout.step] = layout.constant
        return image

    def _constant(self, image: Tensor) -> float:
        """The reference columns' weight: as large as the tile's largest, so that noise weighs least on it."""
        if self._capabilities.weight_unit == "full_scale":
            bits = self._capabilities.weight_bits
            return float(largest_code(bits, signed=self._capabilities.signed_weights)) if bits else 1.0
        return float(image.abs().amax()) or 1.0


def _write(image: Tensor, block: Block, matrices: Tensor) -> None:
    """Put a block into a tile's image, which is kept transposed ([cols, rows]) as torch's kernels want it."""
    part = matrices[block.group, block.start : block.stop, block.first : block.last].t()
    image[block.tile_col : block.tile_col + part.shape[0], block.tile_row : block.tile_row + part.shape[1]] = part


@dataclass(frozen=True, slots=True)
class Image:
    """What goes to a tile at a load: weights [rows, cols]."""

    load: int
    tile: int
    weights: Tensor


class Feed:
    """Images in the order in which they are programmed, from a load on to the last; each is built when it is asked for.

    `wanted(load, tile)` is asked once a load, when it begins, and says which of its tiles the feed brings.
    """

    def __init__(self, images: TileImages, load: int, wanted: Callable[[int, int], bool]) -> None:
        self._images, self._wanted = images, wanted
        self._next: Image | None = None
        self._open(load)

    def _open(self, load: int) -> None:
        self.load = load
        self.tiles = {tile for tile in self._images.tiles(load) if self._wanted(load, tile)}  # still to come
        self._building = self._images.build(load, frozenset(self.tiles))

    def peek(self) -> Image | None:
        """The next image; None at the end."""
        while self._next is None:
            if self.tiles:
                tile, image = next(self._building)
                self._next = Image(self.load, tile, image.t())
            elif self.load + 1 < self._images.loads:
                self._open(self.load + 1)
            else:
                return None
        return self._next

    def take(self) -> Image:
        """The next image, which is gone then. Raises IndexError at the end."""
        image = self.peek()
        if image is None:
            raise IndexError("the feed has come to its end")
        self._next = None
        self.tiles.discard(image.tile)
        return image
