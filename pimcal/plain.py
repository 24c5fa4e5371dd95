"""The plain backend: what a product on a bounded array means, one multiplication after the other.

Slow on purpose. Read it to learn the semantics, and test against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pimcal.backend import Backend, Capabilities
from pimcal.errors import DataError
from pimcal.hookspecs import RegisterBackend, hookimpl
from pimcal.quantize import largest_code
from pimcal.tile_check import Tiles, check_inputs, check_weights

if TYPE_CHECKING:
    from torch import Tensor

Matrix = list[list[float]]


class PlainSettings(BaseModel):
    """Integer widths; where one is left out, that side is floating point.

    The converter behind each column has 2^output_bits - 1 codes from -full scale to +full scale and
    saturates there. Its full scale is `output_share` of the largest sum that the programmed rows can give:
    output_share * rows * largest weight code * largest input code.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    weight_bits: int | None = Field(default=None, ge=2, le=16)
    input_bits: int | None = Field(default=None, ge=2, le=16)
    output_bits: int | None = Field(default=None, ge=2, le=32)
    signed_weights: bool = True
    signed_inputs: bool = True
    output_share: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _full_scale_needs_codes(self) -> PlainSettings:
        if self.output_bits is not None and (self.weight_bits is None or self.input_bits is None):
            raise ValueError("output_bits needs weight_bits and input_bits: they give the full scale")
        return self


class Plain(Backend):
    """Nested loops over input vectors, columns and rows."""

    def __init__(self, settings: PlainSettings, tiles: Tiles) -> None:
        self._settings = settings
        self._capabilities = Capabilities(
            identity="plain",
            tiles=tiles.count,
            rows=tiles.rows,
            cols=tiles.cols,
            weight_bits=settings.weight_bits,
            input_bits=settings.input_bits,
            output_bits=settings.output_bits,
            signed_weights=settings.signed_weights,
            signed_inputs=settings.signed_inputs,
            weight_unit="raw" if settings.weight_bits is None else "full_scale",
        )
        self._weights: dict[int, Matrix] = {}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def program(self, tile: int, weights: Tensor) -> None:
        check_weights(self._capabilities, tile, weights)
        matrix = weights.tolist()
        check_codes(f"tile {tile}: weights", matrix, self._settings.weight_bits, self._settings.signed_weights)
        self._weights[tile] = matrix

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        weights = self._weights.get(tile)
        check_inputs(tile, None if weights is None else len(weights), inputs)
        vectors: Matrix = inputs.tolist()
        check_codes(f"tile {tile}: inputs", vectors, self._settings.input_bits, self._settings.signed_inputs)
        outputs = inputs.new_tensor([self._product(vector, self._weights[tile]) for vector in vectors])
        return outputs.reshape(len(vectors), len(self._weights[tile][0]))  # without vectors, too

    def state_dict(self) -> dict[str, Any]:
        return {"tiles": dict(self._weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weights = dict(state["tiles"])

    def _product(self, vector: list[float], weights: Matrix) -> list[float]:
        """One matrix-vector product: every column sums its rows' currents, then is converted."""
        outputs = []
        for column in range(len(weights[0])):
            current = 0.0
            for row, value in enumerate(vector):
                current += value * weights[row][column]
            outputs.append(self._converted(current, rows=len(weights)))
        return outputs

    def _converted(self, current: float, rows: int) -> float:
        """`current` as the column's converter reads it, in the unit of the products."""
        bits = self._settings.output_bits
        if bits is None:
            return current
        full_scale = self._settings.output_share * rows * self._largest_product()
        largest = largest_code(bits)
        code = round(current / full_scale * largest)
        return max(-largest, min(largest, code)) * full_scale / largest

    def _largest_product(self) -> int:
        settings = self._settings
        assert settings.weight_bits is not None  # the settings model demands both with output_bits
        assert settings.input_bits is not None
        return largest_code(settings.weight_bits, signed=settings.signed_weights) * largest_code(
            settings.input_bits, signed=settings.signed_inputs
        )


def check_codes(what: str, matrix: Matrix, bits: int | None, signed: bool) -> None:
    """Refuse anything but the whole numbers that `bits` can carry; None carries everything.

    Raises:
        DataError: a value is out of range or between two codes.
    """
    if bits is None:
        return
    largest = largest_code(bits, signed=signed)
    smallest = -largest if signed else 0
    for value in (value for row in matrix for value in row):
        if not (smallest <= value <= largest and value == int(value)):
            raise DataError(f"{what} must be whole numbers from {smallest} to {largest}, not {value}")


@hookimpl
def pimcal_register_backends(register: RegisterBackend) -> None:
    register(name="plain", backend=Plain, settings=PlainSettings)
