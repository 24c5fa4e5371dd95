"""What computes the products of one tile: the vectorised model, or a tile of aihwkit's own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pimcal.draws import seeded
from pimcal.patches import Patches
from pimcal_aihwkit.analog_mvm import AnalogMvm, Blocks, IoModel


class TileProducts(Protocol):
    """Products with the weights [cols, rows] that were set last."""

    def set_weights(self, weights: Tensor) -> None: ...

    def matmul(self, inputs: Tensor, key: int) -> Tensor:
        """`inputs` [n, rows] to [n, cols]; `key` seeds the noise."""
        ...


class Vectorised:
    """All vectors at once, on the torch device of the weights."""

    def __init__(self, io: IoModel) -> None:
        self._mvm = AnalogMvm(io)
        self._generator = torch.Generator()
        self._weights: Tensor | None = None

    def set_weights(self, weights: Tensor) -> None:
        self._weights = weights

    def matmul(self, inputs: Tensor, key: int) -> Tensor:
        assert self._weights is not None
        return self._mvm(self._weights, inputs, self._generator.manual_seed(key))

    def matmul_blocks(self, rows: Tensor, columns: Tensor, inputs: Tensor, key: int) -> Tensor:
        """`inputs` [blocks, n, rows] times the tile's `rows` [blocks, rows] and `columns` [blocks, cols]:
        [blocks, n, cols]."""
        assert self._weights is not None
        weights = self._weights[columns[:, :, None], rows[:, None, :]]
        blocks = Blocks(weights, rows[:, 0], self._weights.shape[1])
        return self._mvm.of_blocks(blocks, inputs, self._generator.manual_seed(key))


class OwnTile:
    """A simulator tile of aihwkit, on the CPU.

    The C++ tile takes the noise of products from the clock. Each of its vectors is on its own, so that they can go to
    it in parts that stay in the cache; the torch tile's bound management looks at all vectors of a call at once.
    """

    def __init__(self, rpu: Any, cols: int, rows: int, *, part_elements: int | None) -> None:
        self._owner = rpu.tile_class(cols, rows, rpu, bias=False)  # kept: the C++ tile works in its memory
        self._tile = self._owner.tile
        self._rows = rows
        self._part = None if part_elements is None else max(1, part_elements // rows)
        self._weights: Tensor | None = None
        self._order: Tensor | None = None  # of the rows within the tile; None: as they come

    def set_weights(self, weights: Tensor) -> None:
        self._weights = weights.cpu()
        self._set_ordered()

    def matmul(self, inputs: Tensor, key: int) -> Tensor:
        inputs = inputs.cpu() if self._order is None else inputs.cpu()[:, self._order]
        return self._forward(inputs.split(self._part or max(1, len(inputs))), key).to(inputs.device)

    def matmul_patches(self, patches: Patches, key: int) -> Tensor:
        """As `matmul` of the patches' vectors. The tile's rows are put into the order in which maps lie in memory:
        vectors are then copied in runs, several times as fast as value by value."""
        order, gathered = _in_memory_order(patches)
        if self._order is None or not torch.equal(order, self._order):
            self._order = order
            self._set_ordered()
        maps = max(1, (self._part or 1) // patches.positions_per_map)
        parts = (part.reshape(-1, self._rows) for part in gathered.split(maps))
        return self._forward(parts, key).to(patches.maps.device)

    def _forward(self, parts: Iterable[Tensor], key: int) -> Tensor:
        with seeded(key), torch.no_grad():  # the torch tile's weights are parameters
            outputs = [self._tile.forward(part.contiguous(), False, False, False, True, False) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _set_ordered(self) -> None:
        if self._weights is not None:
            weights = self._weights if self._order is None else self._weights[:, self._order]
            self._tile.set_weights(weights.contiguous())


def _in_memory_order(patches: Patches) -> tuple[Tensor, Tensor]:
    """Rows by how far apart they lie in a map, the nearest last: their numbers, and vectors [n, *positions, *rows]."""
    loops, behind = patches.rows, 1 + len(patches.positions)
    far_first = sorted(range(len(loops)), key=lambda i: -loops[i].stride)
    order = torch.arange(math.prod(loop.count for loop in loops)).reshape([loop.count for loop in loops])
    maps = replace(patches, maps=patches.maps.cpu()).gathered()
    return order.permute(far_first).flatten(), maps.permute(*range(behind), *(behind + i for i in far_first))
