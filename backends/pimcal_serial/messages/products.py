"""MVM, WRITE_BUFFER and MVM_GATHER: vectors, and what becomes of them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pimcal.patches import Loop
from pimcal_serial.frames import PayloadError, Status
from pimcal_serial.inputs import (
    InputFormat,
    Int8s,
    Int32s,
    OutputFormat,
    decode_inputs,
    decode_outputs,
    encode_inputs,
    encode_outputs,
)
from pimcal_serial.messages.fields import U32_FIELD, head, known_format, packed

_MVM = struct.Struct("<BBHIHHHH")
_WRITE_BUFFER = struct.Struct("<BBHI")
_GATHER = struct.Struct("<BBBBIIHHH")
_LOOP = struct.Struct("<Hi")


@dataclass(frozen=True, slots=True, eq=False)
class Mvm:
    """Input vectors `inputs` [count, rows], and how they and their results travel; `step` divides the results.

    The vectors drive the tile's rows from `first_row` on, the others get 0; columns `first_col` and following are
    read, `cols` of them (0: all).
    """

    inputs: Int8s
    input_format: InputFormat = InputFormat.INT8
    output_format: OutputFormat = OutputFormat.INT32
    step: int = 1
    first_row: int = 0
    first_col: int = 0
    cols: int = 0

    @property
    def rows(self) -> int:
        return self.inputs.shape[1]

    def encode(self) -> bytes:
        count, rows = self.inputs.shape
        fields = (self.input_format, self.output_format, count, self.step)
        part = (self.first_row, rows, self.first_col, self.cols)
        return packed(_MVM, *fields, *part) + encode_inputs(self.inputs, self.input_format)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        input_code, output_code, count, step, first_row, rows, first_col, cols = head(_MVM, payload)
        form, output_format = known_format(InputFormat, input_code), known_format(OutputFormat, output_code)
        inputs = decode_inputs(payload[_MVM.size :], count, rows, form)
        return cls(inputs, form, output_format, step, first_row, first_col, cols)


@dataclass(frozen=True, slots=True, eq=False)
class MvmResult:
    """Output vectors `outputs` [count, cols], and how many of these values were clipped."""

    saturated: int
    outputs: Int32s

    def encode(self, form: OutputFormat, output_bits: int) -> bytes:
        return packed(U32_FIELD, self.saturated) + encode_outputs(self.outputs, form, output_bits)

    @classmethod
    def decode(cls, payload: bytes, count: int, cols: int, form: OutputFormat, output_bits: int) -> Self:
        (saturated,) = head(U32_FIELD, payload)
        return cls(saturated, decode_outputs(payload[U32_FIELD.size :], count, cols, form, output_bits))


@dataclass(frozen=True, slots=True, eq=False)
class WriteBuffer:
    """`values` [count] for the input buffer, from `address` on."""

    address: int
    values: Int8s
    input_format: InputFormat = InputFormat.INT8

    def encode(self) -> bytes:
        fields = (self.input_format, 0, len(self.values), self.address)
        return packed(_WRITE_BUFFER, *fields) + encode_inputs(self.values[None], self.input_format)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        code, _, count, address = head(_WRITE_BUFFER, payload)
        form = known_format(InputFormat, code)
        return cls(address, decode_inputs(payload[_WRITE_BUFFER.size :], 1, count, form)[0], form)


@dataclass(frozen=True, slots=True)
class MvmGather:
    """Products with vectors from the input buffer: up to three loops over rows and over positions, slowest first.

    `first_row`, `first_col` and `cols` as in `Mvm`.
    """

    base: int
    row_loops: tuple[Loop, ...]
    position_loops: tuple[Loop, ...]
    output_format: OutputFormat = OutputFormat.INT32
    step: int = 1
    first_row: int = 0
    first_col: int = 0
    cols: int = 0

    @property
    def rows(self) -> int:
        """Values of a vector."""
        return prod(loop.count for loop in self.row_loops)

    @property
    def positions(self) -> int:
        """How many vectors."""
        return prod(loop.count for loop in self.position_loops)

    def addresses(self) -> NDArray[np.int64]:
        """Where each vector's values lie: [positions, rows]."""
        return self.base + _offsets(self.position_loops)[:, None] + _offsets(self.row_loops)

    def encode(self) -> bytes:
        counts = (len(self.row_loops), len(self.position_loops))
        part = (self.first_row, self.first_col, self.cols)
        fields = packed(_GATHER, 0, self.output_format, *counts, self.step, self.base, *part)
        return fields + b"".join(
            packed(_LOOP, loop.count, loop.stride) for loop in (*self.row_loops, *self.position_loops)
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        _, code, n_rows, n_positions, step, base, *part = head(_GATHER, payload)
        if max(n_rows, n_positions) > 3:
            raise PayloadError(Status.OUT_OF_RANGE, f"{n_rows} row and {n_positions} position loops; 3 each at most")
        rest = payload[_GATHER.size :]
        if len(rest) != (n_rows + n_positions) * _LOOP.size:
            raise PayloadError(Status.BAD_LENGTH, f"{len(rest)} bytes for {n_rows + n_positions} loops")
        loops = tuple(Loop(*fields) for fields in _LOOP.iter_unpack(rest))
        return cls(base, loops[:n_rows], loops[n_rows:], known_format(OutputFormat, code), step, *part)


def _offsets(loops: tuple[Loop, ...]) -> NDArray[np.int64]:
    """What the loops add to the base, the last loop fastest."""
    offsets = np.zeros(1, np.int64)
    for loop in loops:
        offsets = (offsets[:, None] + np.arange(loop.count, dtype=np.int64) * loop.stride).ravel()
    return offsets
