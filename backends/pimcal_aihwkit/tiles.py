"""What computes the products of one tile: the vectorised model, or a tile of aihwkit's own."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from pimcal.draws import seeded
from pimcal_aihwkit.analog_mvm import AnalogMvm, IoModel


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


class OwnTile:
    """A simulator tile of aihwkit, on the CPU; its C++ code takes the noise of products from the clock."""

    def __init__(self, rpu: Any, cols: int, rows: int) -> None:
        self._owner = rpu.tile_class(cols, rows, rpu, bias=False)  # kept: the C++ tile works in its memory
        self._tile = self._owner.tile

    def set_weights(self, weights: Tensor) -> None:
        self._tile.set_weights(weights.cpu().contiguous())

    def matmul(self, inputs: Tensor, key: int) -> Tensor:
        with seeded(key), torch.no_grad():  # the torch tile's weights are parameters
            outputs: Tensor = self._tile.forward(inputs.cpu().contiguous(), False, False, False, True, False)
        return outputs.to(inputs.device)
