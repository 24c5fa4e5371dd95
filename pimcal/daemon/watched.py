"""A backend that tells of each call before it makes it: that there is progress, and where work may be abandoned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pimcal.backend import Backend, Capabilities

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pimcal.patches import PartProduct, Patches, TilePart


class Abandoned(BaseException):
    """What runs on the device is to end here. No Exception, so that nothing on the way takes it for an error."""


class Watched(Backend):
    """`inner`, with `beat()` before each call that uses the device; what `beat` raises comes out of the call."""

    def __init__(self, inner: Backend, beat: Callable[[], None]) -> None:
        self._inner, self._beat = inner, beat

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def program(self, tile: int, weights: Tensor) -> None:
        self._beat()
        self._inner.program(tile, weights)

    def program_ahead(self, tile: int, weights: Tensor) -> None:
        self._beat()
        self._inner.program_ahead(tile, weights)

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        self._beat()
        return self._inner.matmul(tile, inputs)

    def matmul_part(self, tile: int, inputs: Tensor, part: TilePart) -> Tensor:
        self._beat()
        return self._inner.matmul_part(tile, inputs, part)

    def matmul_patches(self, tile: int, patches: Patches, part: TilePart) -> Tensor:
        self._beat()
        return self._inner.matmul_patches(tile, patches, part)

    def matmul_parts(self, products: Sequence[PartProduct]) -> list[Tensor]:
        self._beat()
        return self._inner.matmul_parts(products)

    def effective_weights(self, tile: int) -> Tensor:
        self._beat()
        return self._inner.effective_weights(tile)

    def new_batch(self) -> None:
        self._beat()
        self._inner.new_batch()

    def advance(self, seconds: float) -> None:
        self._inner.advance(seconds)

    def telemetry(self) -> dict[str, float]:
        self._beat()
        return self._inner.telemetry()

    def state_dict(self) -> dict[str, Any]:
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state)

    def to(self, torch_device: torch.device) -> None:
        self._inner.to(torch_device)

    def close(self) -> None:
        self._inner.close()
