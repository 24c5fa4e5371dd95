"""The simulated array: keeps the programmed weights, and draws their noise when it is asked for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pimcal.backend import Backend, Capabilities
from pimcal.draws import key_of, mix, normal, normal_like
from pimcal.tile_check import Tiles, check_advance, check_inputs, check_weights, private_columns, unprogrammed
from pimcal_gaussian.drift import RandomWalk, eta0_ratio, temperature_c
from pimcal_gaussian.settings import GaussianSettings, TemperatureDrift
from pimcal_gaussian.together import SmallTiles

if TYPE_CHECKING:
    from torch import Tensor

_SPATIAL, _TEMPORAL, _WALK = 1, 2, 3  # what a draw is for: the second part of every key

# From this many cells on, a tile's noise factor is kept in half the memory. Rounding it adds 0.2 % to a
# factor that itself spreads by `sigma_spatial`; below, the conversion would cost more than it saves.
_LARGE_TILE = 65536


@dataclass(slots=True)
class _Tile:
    weights: Tensor  # [cols, rows]
    # What N_T is multiplied by, [cols, rows]: W * N_S or N_S. None where N_S is the same for all weights.
    factor: Tensor | None
    key: int  # of the temporal draws
    programmings: int


class Gaussian(Backend):
    """See `GaussianSettings` for the noise models.

    Every draw is keyed by (seed, purpose, tile, number of the batch or of the programming), so that it is
    the same whenever and in whichever order tiles are asked for.
    """

    def __init__(self, settings: GaussianSettings, tiles: Tiles) -> None:
        self._settings = settings
        self._capabilities = Capabilities(
            identity=f"gaussian-{settings.noise}-{settings.seed}",
            tiles=tiles.count,
            rows=tiles.rows,
            cols=tiles.cols,
            weight_unit="std" if settings.noise == "awgn" else "raw",
            simulated_clock=True,
            effective_weights=True,
        )
        self._multiplies = settings.noise == "mul"
        self._spatial_mean, self._spatial_std = _spatial_law(settings)
        self._tiles: dict[int, _Tile] = {}
        self._small = SmallTiles(self._with_noise, smaller_than=_LARGE_TILE)
        self._batch = 0
        self._start(settings.seed, time_s=0.0)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def program(self, tile: int, weights: Tensor) -> None:
        check_weights(self._capabilities, tile, weights)
        former = self._tiles.get(tile)
        self._store(tile, private_columns(weights), former.programmings + 1 if former else 1)

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        held = self._tiles.get(tile)
        check_inputs(tile, None if held is None else held.weights.shape[1], inputs)
        return inputs @ self.effective_weights(tile)

    def effective_weights(self, tile: int) -> Tensor:
        held = self._tiles.get(tile)
        if held is None:
            raise unprogrammed(tile)
        if self._std and self._settings.granularity == "element":
            together = self._small.weights(tile, held)
            if together is not None:
                return together
            part = (held.key, held.weights.numel())
            return self._with_noise(held.weights, held.factor, [part]).t()
        return self._with_level(held, self._level(held)).t()

    def new_batch(self) -> None:
        self._batch += 1
        self._small.new_batch(self._tiles)

    def advance(self, seconds: float) -> None:
        check_advance(seconds)
        self._set_time(self._time_s + seconds)

    def telemetry(self) -> dict[str, float]:
        readings = {"simulated_time_s": self._time_s, "eta0_ratio": self._ratio}
        if isinstance(self._settings.drift, TemperatureDrift):
            readings["temperature_c"] = temperature_c(self._settings.drift, self._time_s)
        return readings

    def state_dict(self) -> dict[str, Any]:
        tiles = {
            tile: {"weights": held.weights, "programmings": held.programmings} for tile, held in self._tiles.items()
        }
        return {"seed": self._seed, "batch": self._batch, "time_s": self._time_s, "tiles": tiles}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._batch = state["batch"]
        self._start(state["seed"], state["time_s"])
        self._tiles = {}
        for tile, held in state["tiles"].items():
            self._store(tile, held["weights"].clone(), held["programmings"])

    def to(self, torch_device: torch.device) -> None:
        self._small.changed()
        for held in self._tiles.values():
            held.weights = held.weights.to(torch_device)
            held.factor = None if held.factor is None else held.factor.to(torch_device)

    def _start(self, seed: int, time_s: float) -> None:
        self._seed = seed
        self._walk = RandomWalk(key_of(seed, _WALK))
        self._set_time(time_s)

    def _set_time(self, time_s: float) -> None:
        """Set the clock and with it the mean and standard deviation of N_T."""
        self._time_s = time_s
        self._ratio = eta0_ratio(self._settings.drift, time_s, self._walk)
        mean, std = _temporal_law(self._settings, self._settings.eta0 * self._ratio)
        if not self._spatial_std:  # N_S is one number: let N_T carry it
            mean, std = mean * self._spatial_mean, std * abs(self._spatial_mean)
        self._mean, self._std = mean, std
        self._small.redraw()

    def _store(self, tile: int, weights: Tensor, programmings: int) -> None:
        self._small.changed()
        key = key_of(self._seed, _TEMPORAL, tile)
        self._tiles[tile] = _Tile(weights, self._factor(tile, weights, programmings), key, programmings)

    def _factor(self, tile: int, weights: Tensor, programmings: int) -> Tensor | None:
        if not self._spatial_std:
            return None
        key = key_of(self._seed, _SPATIAL, tile, programmings)
        factor = normal_like(weights, key, self._spatial_mean, self._spatial_std)
        if self._multiplies:
            factor.mul_(weights)
        return factor.bfloat16() if factor.numel() >= _LARGE_TILE else factor

    def _with_noise(self, weights: Tensor, factor: Tensor | None, parts: list[tuple[int, int]]) -> Tensor:
        """The weights with N_T drawn for every one of them; few operations and one allocation, this is the hot path."""
        keys = [(mix(key ^ self._batch), count) for key, count in parts]
        noise = normal(keys, self._mean, self._std).to(weights).view(weights.shape)
        if factor is not None:
            return torch.addcmul(weights, factor, noise, out=noise)
        return torch.addcmul(weights, weights, noise, out=noise) if self._multiplies else noise.add_(weights)

    def _with_level(self, held: _Tile, level: float) -> Tensor:
        """The weights with one N_T for all of them."""
        if held.factor is not None:
            return torch.add(held.weights, held.factor, alpha=level)
        return held.weights * (1.0 + level) if self._multiplies else held.weights + level

    def _level(self, held: _Tile) -> float:
        if not self._std:
            return self._mean
        key = held.key if self._settings.granularity == "tile" else key_of(self._seed, _TEMPORAL)
        return float(normal([(mix(key ^ self._batch), 1)], self._mean, self._std))


def _temporal_law(settings: GaussianSettings, eta0: float) -> tuple[float, float]:
    """Mean and standard deviation of N_T."""
    if settings.noise != "awgn":
        return eta0, settings.sigma_temporal * eta0
    return (0.0, eta0) if settings.redraw == "batch" else (eta0, 0.0)


def _spatial_law(settings: GaussianSettings) -> tuple[float, float]:
    """Mean and standard deviation of N_S; AWGN drawn at programming is additive noise with N_S ~ N(0, 1)."""
    if settings.noise != "awgn":
        return settings.mu_spatial, settings.sigma_spatial
    return (1.0, 0.0) if settings.redraw == "batch" else (0.0, 1.0)
