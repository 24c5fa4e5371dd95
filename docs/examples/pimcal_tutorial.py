"""A backend to learn from: a simulated array whose columns end in amplifiers of unequal gain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from pimcal.backend import Backend, Capabilities
from pimcal.hookspecs import RegisterBackend, hookimpl
from pimcal.tile_check import Tiles, check_inputs, check_weights

if TYPE_CHECKING:
    from torch import Tensor


class TutorialSettings(BaseModel):
    """The `device:` part of a profile. Unknown keys are refused, with a suggestion."""

    model_config = ConfigDict(extra="forbid")

    gain_spread: float = Field(default=0.05, ge=0)
    seed: int = Field(default=0, ge=0)


class Tutorial(Backend):
    """Column c of tile t amplifies its products by 1 + N(0, gain_spread^2), fixed when the chip was made."""

    def __init__(self, settings: TutorialSettings, tiles: Tiles) -> None:
        self._settings = settings
        self._capabilities = Capabilities(
            identity=f"tutorial-{settings.seed}", tiles=tiles.count, rows=tiles.rows, cols=tiles.cols
        )
        self._weights: dict[int, Tensor] = {}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def program(self, tile: int, weights: Tensor) -> None:
        check_weights(self._capabilities, tile, weights)
        self._weights[tile] = weights.detach().clone()

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        weights = self._weights.get(tile)
        check_inputs(tile, None if weights is None else len(weights), inputs)
        products = inputs @ self._weights[tile]
        return products * self._gains(tile, products.shape[1]).to(products)

    def _gains(self, tile: int, cols: int) -> Tensor:
        import torch  # here, so that checking a profile does not wait for it

        generator = torch.Generator().manual_seed(1000 * self._settings.seed + tile)
        return 1 + self._settings.gain_spread * torch.randn(cols, generator=generator)


@hookimpl
def pimcal_register_backends(register: RegisterBackend) -> None:
    register(name="tutorial", backend=Tutorial, settings=TutorialSettings)
