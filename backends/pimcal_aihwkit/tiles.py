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
    """A simulator tile of aihwkit, on the CPU.

    The C++ tile takes the noise of products from the clock. Each of its vectors is on its own, so that they can go to
    it in parts that stay in the cache; the torch tile's bound management looks at all vectors of a call at once.
    """

    def __init__(self, rpu: Any, cols: int, rows: int, *, part_elements: int | None) -> None:
        self._owner = rpu.tile_class(cols, rows, rpu, bias=False)  # kept: the C++ tile works in its memory
        self._tile = self._owner.tile
        self._part = None if part_elements is None else max(1, part_elements // rows)

    def set_weights(self, weights: Tensor) -> None:
        self._tile.set_weights(weights.cpu().contiguous())

    def matmul(self, inputs: Tensor, key: int) -> Tensor:
        parts = inputs.cpu().split(self._part or max(1, len(inputs)))
        with seeded(key), torch.no_grad():  # the torch tile's weights are parameters
            outputs = [self._tile.forward(_by_vector(part), False, False, False, True, False) for part in parts]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).to(inputs.device)


def _by_vector(part: Tensor) -> Tensor:
    """Contiguous [n, rows]. The vectors of a convolution come position by position (`ConvView.patches`): copied row by
    row first, the rest is a plain transpose, which torch does block by block and several times as fast."""
    return part.t().contiguous().t().contiguous()
