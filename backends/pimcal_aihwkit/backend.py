"""Tiles with aihwkit's models of conductance, drift and converters."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pimcal.backend import Backend, Capabilities
from pimcal.draws import key_of, mix
from pimcal.errors import ConfigError, DataError
from pimcal.patches import PartProduct
from pimcal.tile_check import (
    Tiles,
    check_advance,
    check_inputs,
    check_part,
    check_weights,
    private_columns,
    unprogrammed,
)
from pimcal_aihwkit.conductance import Coefficients, Conductances
from pimcal_aihwkit.config import Setup, build
from pimcal_aihwkit.installation import check_pair
from pimcal_aihwkit.settings import AihwkitSettings
from pimcal_aihwkit.tiles import OwnTile, TileProducts, Vectorised

if TYPE_CHECKING:
    from torch import Tensor

    from pimcal.patches import Patches, TilePart

_CPP_PART_ELEMENTS = 1 << 17  # inputs that the C++ tile gets at a time
_PROGRAM, _READ, _PRODUCT = 1, 2, 3  # what a draw is for: the second part of every key


@dataclass(slots=True)
class _Tile:
    programmed: Tensor  # [cols, rows], as programming left them, largest magnitude about 1
    drift: Coefficients
    scales: Tensor  # [cols] or [1]: what one unit of the array is worth in units of the weights
    programmings: int
    programmed_at_s: float
    products: TileProducts | None
    now: Tensor | None = None  # `programmed` after drift and read noise; None: to be found out
    calls: int = 0  # products in this batch


class Aihwkit(Backend):
    """See `AihwkitSettings`. Programming draws programming noise and drift coefficients; `advance` lets them act.

    Every draw is keyed by (seed, purpose, tile, number of the programming, and time or batch), so that it is the
    same whenever and in whichever order tiles are asked for.
    """

    def __init__(self, settings: AihwkitSettings, tiles: Tiles) -> None:
        self._setup = setup = build(settings)
        self._kind = settings.tile
        if settings.tile != "vectorised":
            check_pair()  # aihwkit's own tiles are compiled for one torch, and may fail only when they are used
        self._conductances = None if setup.noise is None else Conductances(setup.noise)
        self._capabilities = Capabilities(
            identity=f"aihwkit-{_name(settings)}-{settings.seed}",
            tiles=tiles.count,
            rows=_smaller("rows", tiles.rows, setup.rows, settings.preset),
            cols=_smaller("cols", tiles.cols, setup.cols, settings.preset),
            simulated_clock=True,
            effective_weights=setup.io is None and setup.input_range is None,
            readable_rows=_readable_rows(setup),
            drift_compensation=setup.drift_compensation,
            parts=settings.tile == "vectorised" and setup.io is not None,
            patches=settings.tile == "cpp" and setup.io is not None,
        )
        self._seed = settings.seed
        self._tiles: dict[int, _Tile] = {}
        self._time_s, self._batch = 0.0, 0
        self._torch_device = torch.device("cpu")

    @classmethod
    def check_installation(cls) -> str:
        return check_pair()

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @torch.inference_mode(False)  # what is made there could not be trained through later
    def program(self, tile: int, weights: Tensor) -> None:
        check_weights(self._capabilities, tile, weights)
        former = self._tiles.get(tile)
        programmings = former.programmings + 1 if former else 1
        columns = private_columns(weights.cpu())
        scales = _scales(columns, self._setup)
        columns /= scales[:, None]
        drift: Coefficients = []
        if self._conductances is not None:
            try:
                columns, drift = self._conductances.program(columns, self._key(_PROGRAM, tile, programmings))
            except DataError as error:
                raise DataError(f"tile {tile}: {error}; keep its layer on the host (host: in the profile)") from error
        self._store(tile, columns, drift, scales, programmings, self._time_s)

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        held = self._tiles.get(tile)
        check_inputs(tile, None if held is None else held.programmed.shape[1], inputs)
        held, inputs = self._held(tile), self._in_range(inputs)
        if held.products is None:
            outputs = inputs @ self._now(tile, held).t()
        else:
            outputs = held.products.matmul(inputs, self._next_product(tile, held))
        return self._scaled(held, outputs)

    def matmul_part(self, tile: int, inputs: Tensor, part: TilePart) -> Tensor:
        if not self._capabilities.parts:
            return super().matmul_part(tile, inputs, part)
        return self.matmul_parts([PartProduct(tile, inputs, part)])[0]

    def matmul_parts(self, products: Sequence[PartProduct]) -> list[Tensor]:
        """All parts of one size on a tile go together, with noise from one key."""
        if not self._capabilities.parts:
            return super().matmul_parts(products)
        outputs: dict[int, Tensor] = {}
        for (tile, *_), numbers in _alike(products).items():
            found = self._of_parts(tile, [products[i] for i in numbers])
            outputs |= zip(numbers, found, strict=True)
        return [outputs[i] for i in range(len(products))]

    def _of_parts(self, tile: int, products: Sequence[PartProduct]) -> Iterable[Tensor]:
        vectors = [product.inputs for product in products if isinstance(product.inputs, torch.Tensor)]
        held = self._tiles.get(tile)
        shape = None if held is None else (held.programmed.shape[1], held.programmed.shape[0])
        for product, inputs in zip(products, vectors, strict=True):
            check_part(tile, shape, product.part)
            check_inputs(tile, product.part.rows, inputs)
        held = self._held(tile)
        rows, columns = _numbers(products, held.scales.device)
        if len(products) == 1 and (rows.shape[1], columns.shape[1]) == shape:
            return [self.matmul(tile, vectors[0])]
        assert isinstance(held.products, Vectorised)  # as the capabilities say
        key = self._next_product(tile, held)
        outputs = held.products.matmul_blocks(rows, columns, self._in_range(torch.stack(vectors)), key)
        scales = held.scales.expand(held.programmed.shape[0])[columns]
        return self._scaled(held, outputs, scales[:, None])

    def matmul_patches(self, tile: int, patches: Patches, part: TilePart) -> Tensor:
        if not self._capabilities.patches:
            return super().matmul_patches(tile, patches, part)
        held = self._held(tile)
        assert isinstance(held.products, OwnTile)  # as the capabilities say
        patches = replace(patches, maps=self._in_range(patches.maps))
        return self._scaled(held, held.products.matmul_patches(patches, self._next_product(tile, held)))

    def _in_range(self, inputs: Tensor) -> Tensor:
        limit = self._setup.input_range
        return inputs if limit is None else inputs.clamp(-limit, limit) / limit

    def _next_product(self, tile: int, held: _Tile) -> int:
        """The key of a tile's next product, its weights being as they are now."""
        self._now(tile, held)
        held.calls += 1
        return mix(self._key(_PRODUCT, tile, self._batch) ^ held.calls)

    def _scaled(self, held: _Tile, outputs: Tensor, scales: Tensor | None = None) -> Tensor:
        if held.products is not None and self._setup.scaling != "none":
            outputs = outputs * (held.scales if scales is None else scales)
        return outputs if self._setup.input_range is None else outputs * self._setup.input_range

    def effective_weights(self, tile: int) -> Tensor:
        if not self._capabilities.effective_weights:
            return super().effective_weights(tile)
        held = self._held(tile)
        return self._now(tile, held).t()

    def new_batch(self) -> None:
        self._batch += 1
        for held in self._tiles.values():
            held.calls = 0

    def advance(self, seconds: float) -> None:
        check_advance(seconds)
        self._time_s += seconds
        if seconds:
            self._forget()

    def telemetry(self) -> dict[str, float]:
        return {"simulated_time_s": self._time_s}

    def state_dict(self) -> dict[str, Any]:
        tiles = {
            tile: {
                "programmed": held.programmed,
                "drift": held.drift,
                "scales": held.scales.cpu(),
                "programmings": held.programmings,
                "programmed_at_s": held.programmed_at_s,
                "calls": held.calls,
            }
            for tile, held in self._tiles.items()
        }
        model = _model(self._setup)
        return {"model": model, "seed": self._seed, "batch": self._batch, "time_s": self._time_s, "tiles": tiles}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (model := _model(self._setup)) != state["model"]:
            raise DataError(
                f"state was saved from tiles with {state['model']}, and these have {model}; open the device with the "
                "profile that it was saved with"
            )
        self._seed, self._batch, self._time_s = state["seed"], state["batch"], state["time_s"]
        self._tiles = {}
        for tile, held in state["tiles"].items():
            drift = [None if part is None else part.cpu().clone() for part in held["drift"]]
            columns, scales = held["programmed"].cpu().clone(), held["scales"].cpu().clone()
            self._store(tile, columns, drift, scales, held["programmings"], held["programmed_at_s"])
            self._tiles[tile].calls = held["calls"]

    def to(self, torch_device: torch.device) -> None:
        self._torch_device = torch_device
        for held in self._tiles.values():
            held.scales = held.scales.to(torch_device)
        self._forget()

    def _store(
        self,
        tile: int,
        columns: Tensor,
        drift: Coefficients,
        scales: Tensor,
        programmings: int,
        programmed_at_s: float,
    ) -> None:
        products = self._products(*columns.shape)
        scales = scales.to(self._torch_device)
        self._tiles[tile] = _Tile(columns, drift, scales, programmings, programmed_at_s, products)

    def _products(self, cols: int, rows: int) -> TileProducts | None:
        if self._setup.io is None:
            return None
        if self._kind == "vectorised":
            return Vectorised(self._setup.io)
        return OwnTile(self._setup.rpu, cols, rows, part_elements=_CPP_PART_ELEMENTS if self._kind == "cpp" else None)

    def _held(self, tile: int) -> _Tile:
        held = self._tiles.get(tile)
        if held is None:
            raise unprogrammed(tile)
        return held

    def _now(self, tile: int, held: _Tile) -> Tensor:
        """The tile's weights at present [cols, rows]: in units of the array where it has converters, else in those of
        the weights."""
        if held.now is None:
            with torch.inference_mode(False):
                held.now = self._aged(tile, held).to(self._torch_device)
                if held.products is None:
                    held.now = held.now * held.scales[:, None]
            if held.products is not None:
                held.products.set_weights(held.now)
        return held.now

    def _aged(self, tile: int, held: _Tile) -> Tensor:
        if self._conductances is None:
            return held.programmed
        age_s = self._time_s - held.programmed_at_s
        key = self._key(_PROGRAM, tile, held.programmings)
        read_key = self._key(_READ, tile, held.programmings, _as_int(age_s))
        return self._conductances.after(age_s, held.programmed, held.drift, key, read_key)

    def _forget(self) -> None:
        for held in self._tiles.values():
            held.now = None

    def _key(self, *parts: int) -> int:
        return key_of(self._seed, *parts)


def _alike(products: Sequence[PartProduct]) -> dict[tuple[Any, ...], list[int]]:
    """The numbers of the products that have tile, size of the part and count of vectors in common."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, product in enumerate(products):
        assert isinstance(product.inputs, torch.Tensor)  # patches come where the capabilities announce them
        key = (product.tile, product.part.rows, product.ends or product.part.cols, len(product.inputs))
        found.setdefault(key, []).append(i)
    return found


def _numbers(products: Sequence[PartProduct], device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows that each product drives and the columns that it reads [products, count]."""
    rows = [range(p.part.first_row, p.part.first_row + p.part.rows) for p in products]
    columns = [_columns(p.part, p.ends) for p in products]
    return torch.tensor([[*r] for r in rows], device=device), torch.tensor(columns, device=device)


def _columns(part: TilePart, ends: tuple[int, int] | None) -> list[int]:
    every = list(range(part.first_col, part.first_col + part.cols))
    return every if ends is None or sum(ends) >= part.cols else every[: ends[0]] + every[part.cols - ends[1] :]


def _name(settings: AihwkitSettings) -> str:
    return settings.preset or (settings.noise.kind if settings.noise else "pcm")


def _model(setup: Setup) -> str:
    """What makes sense of a tile's state: without the same, its numbers mean something else."""
    return f"{'no noise' if setup.noise is None else type(setup.noise).__name__} and weight_scaling {setup.scaling}"


def _as_int(value: float) -> int:
    """A number's bits, which can be part of a key."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _scales(columns: Tensor, setup: Setup) -> Tensor:
    """What the array's units are worth: the largest weight of a column or of the tile goes to omega."""
    if setup.scaling == "none":
        return torch.ones(1)
    largest = columns.abs().amax(1) if setup.scaling == "column" else columns.abs().amax().reshape(1)
    used = largest[largest > 0]
    # A column of zeros (an offset reference, a pruned channel) holds noise alone: it is to weigh as little as it can.
    return torch.where(largest > 0, largest, used.amin() if len(used) else 1.0) / setup.omega


def _readable_rows(setup: Setup) -> int | None:
    bound = math.inf if setup.io is None else setup.io.output_bound
    return max(1, int(bound)) if math.isfinite(bound) else None


def _smaller(what: str, size: int | None, limit: int | None, preset: str | None) -> int | None:
    """The size of the profile's tiles, or the preset's where the profile has none."""
    if size is not None and limit is not None and size > limit:
        raise ConfigError(f"tiles.{what}: {preset} models tiles of at most {limit} {what}, not {size}")
    return limit if size is None else size
