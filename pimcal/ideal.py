"""The ideal backend: exact products, any number of tiles of any size unless the profile bounds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pimcal.backend import Backend, Capabilities
from pimcal.hookspecs import RegisterBackend, hookimpl
from pimcal.tile_check import Tiles, check_inputs, check_weights, private_columns, unprogrammed

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class IdealSettings(BaseModel):
    """The ideal device has nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Ideal(Backend):
    """Holds each tile's weights as they were given."""

    def __init__(self, settings: IdealSettings, tiles: Tiles) -> None:
        self._capabilities = Capabilities(
            identity="ideal", tiles=tiles.count, rows=tiles.rows, cols=tiles.cols, effective_weights=True
        )
        self._columns: dict[int, Tensor] = {}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def program(self, tile: int, weights: Tensor) -> None:
        check_weights(self._capabilities, tile, weights)
        self._columns[tile] = private_columns(weights)

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        weights = self._columns.get(tile)
        check_inputs(tile, None if weights is None else weights.shape[1], inputs)
        return inputs @ self.effective_weights(tile)

    def effective_weights(self, tile: int) -> Tensor:
        weights = self._columns.get(tile)
        if weights is None:
            raise unprogrammed(tile)
        return weights.t()

    def state_dict(self) -> dict[str, Any]:
        return {"tiles": dict(self._columns)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._columns = {tile: weights.clone() for tile, weights in state["tiles"].items()}

    def to(self, torch_device: torch.device) -> None:
        self._columns = {tile: weights.to(torch_device) for tile, weights in self._columns.items()}


@hookimpl
def pimcal_register_backends(register: RegisterBackend) -> None:
    register(name="ideal", backend=Ideal, settings=IdealSettings)
