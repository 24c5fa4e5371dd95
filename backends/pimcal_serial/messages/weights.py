"""PROGRAM, READBACK and trims: what a tile holds."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pimcal_serial.frames import PayloadError, Status
from pimcal_serial.inputs import Int8s, as_array
from pimcal_serial.messages.fields import PAIR, U16_FIELD, head, packed, whole

UNIT_GAIN = 16384  # a trim's gain that changes nothing

_PROGRAM = struct.Struct("<HHHHI")
_TRIM = np.dtype([("offset", "<i2"), ("gain", "<u2")])


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Rows `first` and following of a matrix of `rows` x `cols`; `weights` [count, cols]."""

    rows: int
    first: int
    id: int
    weights: Int8s

    def encode(self) -> bytes:
        count, cols = self.weights.shape
        return packed(_PROGRAM, self.rows, cols, self.first, count, self.id) + self.weights.tobytes()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        rows, cols, first, count, number_ = head(_PROGRAM, payload)
        weights = as_array(payload[_PROGRAM.size :], count * cols, np.int8).reshape(count, cols)
        return cls(rows, first, number_, weights)


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """How many rows of the tile are still missing."""

    missing: int

    def encode(self) -> bytes:
        return packed(U16_FIELD, self.missing)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        return cls(*whole(U16_FIELD, payload))


@dataclass(frozen=True, slots=True)
class Readback:
    """Asks for `count` rows of weights from row `first` on."""

    first: int
    count: int

    def encode(self) -> bytes:
        return packed(PAIR, self.first, self.count)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        return cls(*whole(PAIR, payload))


@dataclass(frozen=True, slots=True, eq=False)
class ReadbackResult:
    """`weights` [count, cols] of a matrix with `rows` rows."""

    rows: int
    weights: Int8s

    def encode(self) -> bytes:
        return packed(PAIR, self.rows, self.weights.shape[1]) + self.weights.tobytes()

    @classmethod
    def decode(cls, payload: bytes, count: int) -> Self:
        rows, cols = head(PAIR, payload)
        return cls(rows, as_array(payload[PAIR.size :], count * cols, np.int8).reshape(count, cols))


@dataclass(frozen=True, slots=True, eq=False)
class Trims:
    """For each column: `offset` (int16, in units of the sum), `gain` (uint16, UNIT_GAIN changes nothing)."""

    offset: NDArray[np.int16]
    gain: NDArray[np.uint16]

    def encode(self) -> bytes:
        columns = np.empty(len(self.offset), _TRIM)
        columns["offset"], columns["gain"] = self.offset, self.gain
        return columns.tobytes()

    @classmethod
    def decode(cls, payload: bytes, cols: int) -> Self:
        if len(payload) != cols * _TRIM.itemsize:
            raise PayloadError(Status.BAD_LENGTH, f"{len(payload)} bytes for the trims of {cols} columns")
        columns = np.frombuffer(payload, _TRIM)
        return cls(columns["offset"].astype(np.int16), columns["gain"].astype(np.uint16))
