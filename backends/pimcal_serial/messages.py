"""Payloads of requests and answers.

Everything has `encode()` and a class method `decode(payload, ...)`. What a payload does not say itself (a tile's
shape, formats) is passed to `decode`. Decoding raises PayloadError with the status that a board answers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from math import prod
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pimcal_serial.frames import PayloadError, Status
from pimcal_serial.inputs import (
    InputFormat,
    Int8s,
    Int32s,
    OutputFormat,
    as_array,
    decode_inputs,
    decode_outputs,
    encode_inputs,
    encode_outputs,
)
from pimcal_serial.tlv import decode_tlvs, encode_tlvs, number, text

UNIT_GAIN = 16384  # a trim's gain that changes nothing
_ZERO_CELSIUS = 27315  # in 1/100 K

_PROGRAM = struct.Struct("<HHHHB")
_RANGE = struct.Struct("<HH")
_MVM = struct.Struct("<BBHI")
_WRITE_BUFFER = struct.Struct("<BBHI")
_GATHER = struct.Struct("<BBBBII")
_LOOP = struct.Struct("<Hi")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_TRIM = np.dtype([("offset", "<i2"), ("gain", "<u2")])

_Format = TypeVar("_Format", InputFormat, OutputFormat)


class Capability(IntFlag):
    """What a board can do beyond the necessary; HELLO's capability bits."""

    INT4_INPUTS = 1
    ZERO_SKIPPING = 2
    PACKED_OUTPUTS = 4
    INPUT_BUFFER = 8
    BAUD = 16
    TRIMS = 32


_NONE = Capability(0)


class LogLevel(IntEnum):
    """How urgent a board's LOG is."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3


def head(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    """The fixed part of a payload. Raises PayloadError (BAD_LENGTH) where it is not all there."""
    if len(payload) < layout.size:
        raise PayloadError(Status.BAD_LENGTH, f"{len(payload)} bytes, at least {layout.size} belong")
    return layout.unpack_from(payload)


def whole(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    """A payload of fixed size. Raises PayloadError (BAD_LENGTH) for another size."""
    if len(payload) != layout.size:
        raise PayloadError(Status.BAD_LENGTH, f"{len(payload)} bytes, {layout.size} belong")
    return layout.unpack(payload)


def _format(kind: type[_Format], code: int) -> _Format:
    try:
        return kind(code)
    except ValueError as error:
        raise PayloadError(Status.OUT_OF_RANGE, f"no {kind.__name__} {code}") from error


def _packed(layout: struct.Struct, *fields: int) -> bytes:
    try:
        return layout.pack(*fields)
    except struct.error as error:
        raise ValueError(f"{fields} do not fit the payload: {error}") from error


# HELLO


@dataclass(frozen=True, slots=True)
class HostInfo:
    """HELLO of the host; `name` says program and version."""

    name: str = ""
    minor: int = 0

    def encode(self) -> bytes:
        return encode_tlvs({1: self.minor, 19: self.name})

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        values = decode_tlvs(payload)
        return cls(text(values, 19), number(values, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardInfo:
    """HELLO of a board.

    `output_bits` is 0 without an output converter; `buffer_bytes` counts values; `command_ms` is the most time that
    one request takes the board, `mvm_ns` that of one matrix-vector product (0: unknown).
    """

    boot_id: int = 0
    model: str = ""
    serial_number: str = ""
    firmware: str = ""
    tiles: int = 0
    rows: int = 0
    cols: int = 0
    weight_bits: int = 0
    input_bits: int = 0
    output_bits: int = 0
    max_payload: int = 0
    window: int = 0
    replay: int = 0
    command_ms: int = 0
    capabilities: Capability = _NONE
    buffer_bytes: int = 0
    mvm_ns: int = 0
    minor: int = 0

    def encode(self) -> bytes:
        return encode_tlvs({tag: getattr(self, name) for tag, name in _BOARD_TAGS.items()})

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Raises PayloadError where TLVs are broken; unknown ones are skipped, missing ones 0 or empty."""
        values = decode_tlvs(payload)
        fields: dict[str, Any] = {
            name: text(values, tag) if tag in _BOARD_TEXTS else number(values, tag) for tag, name in _BOARD_TAGS.items()
        }
        return cls(**{**fields, "capabilities": Capability(fields["capabilities"])})


_BOARD_TEXTS = (3, 4, 5)
_BOARD_TAGS = {
    1: "minor",
    2: "boot_id",
    3: "model",
    4: "serial_number",
    5: "firmware",
    6: "tiles",
    7: "rows",
    8: "cols",
    9: "weight_bits",
    10: "input_bits",
    11: "output_bits",
    12: "max_payload",
    13: "window",
    14: "replay",
    15: "command_ms",
    16: "capabilities",
    17: "buffer_bytes",
    18: "mvm_ns",
}


# weights


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Rows `first` and following of a matrix of `rows` x `cols`; `weights` [count, cols]."""

    rows: int
    first: int
    id: int
    weights: Int8s

    def encode(self) -> bytes:
        count, cols = self.weights.shape
        return _packed(_PROGRAM, self.rows, cols, self.first, count, self.id) + self.weights.tobytes()

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
        return _packed(_U16, self.missing)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        return cls(*whole(_U16, payload))


@dataclass(frozen=True, slots=True)
class Readback:
    """Asks for `count` rows of weights from row `first` on."""

    first: int
    count: int

    def encode(self) -> bytes:
        return _packed(_RANGE, self.first, self.count)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        return cls(*whole(_RANGE, payload))


@dataclass(frozen=True, slots=True, eq=False)
class ReadbackResult:
    """`weights` [count, cols] of a matrix with `rows` rows."""

    rows: int
    weights: Int8s

    def encode(self) -> bytes:
        return _packed(_RANGE, self.rows, self.weights.shape[1]) + self.weights.tobytes()

    @classmethod
    def decode(cls, payload: bytes, count: int) -> Self:
        rows, cols = head(_RANGE, payload)
        return cls(rows, as_array(payload[_RANGE.size :], count * cols, np.int8).reshape(count, cols))


# products


@dataclass(frozen=True, slots=True, eq=False)
class Mvm:
    """Input vectors `inputs` [count, rows], and how they and their results travel; `step` divides the results."""

    inputs: Int8s
    input_format: InputFormat = InputFormat.INT8
    output_format: OutputFormat = OutputFormat.INT32
    step: int = 1

    def encode(self) -> bytes:
        fields = (self.input_format, self.output_format, len(self.inputs), self.step)
        return _packed(_MVM, *fields) + encode_inputs(self.inputs, self.input_format)

    @classmethod
    def decode(cls, payload: bytes, rows: int) -> Self:
        input_code, output_code, count, step = head(_MVM, payload)
        form, output_format = _format(InputFormat, input_code), _format(OutputFormat, output_code)
        return cls(decode_inputs(payload[_MVM.size :], count, rows, form), form, output_format, step)


@dataclass(frozen=True, slots=True, eq=False)
class MvmResult:
    """Output vectors `outputs` [count, cols], and how many of these values were clipped."""

    saturated: int
    outputs: Int32s

    def encode(self, form: OutputFormat, output_bits: int) -> bytes:
        return _packed(_U32, self.saturated) + encode_outputs(self.outputs, form, output_bits)

    @classmethod
    def decode(cls, payload: bytes, count: int, cols: int, form: OutputFormat, output_bits: int) -> Self:
        (saturated,) = head(_U32, payload)
        return cls(saturated, decode_outputs(payload[_U32.size :], count, cols, form, output_bits))


@dataclass(frozen=True, slots=True)
class Loop:
    """`count` addresses, `stride` values apart."""

    count: int
    stride: int


@dataclass(frozen=True, slots=True, eq=False)
class WriteBuffer:
    """`values` [count] for the input buffer, from `address` on."""

    address: int
    values: Int8s
    input_format: InputFormat = InputFormat.INT8

    def encode(self) -> bytes:
        fields = (self.input_format, 0, len(self.values), self.address)
        return _packed(_WRITE_BUFFER, *fields) + encode_inputs(self.values[None], self.input_format)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        code, _, count, address = head(_WRITE_BUFFER, payload)
        form = _format(InputFormat, code)
        return cls(address, decode_inputs(payload[_WRITE_BUFFER.size :], 1, count, form)[0], form)


@dataclass(frozen=True, slots=True)
class MvmGather:
    """Products with vectors from the input buffer: up to three loops over rows and over positions, slowest first."""

    base: int
    row_loops: tuple[Loop, ...]
    position_loops: tuple[Loop, ...]
    output_format: OutputFormat = OutputFormat.INT32
    step: int = 1

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
        fields = _packed(_GATHER, 0, self.output_format, *counts, self.step, self.base)
        return fields + b"".join(
            _packed(_LOOP, loop.count, loop.stride) for loop in (*self.row_loops, *self.position_loops)
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        _, code, n_rows, n_positions, step, base = head(_GATHER, payload)
        if max(n_rows, n_positions) > 3:
            raise PayloadError(Status.OUT_OF_RANGE, f"{n_rows} row and {n_positions} position loops; 3 each at most")
        rest = payload[_GATHER.size :]
        if len(rest) != (n_rows + n_positions) * _LOOP.size:
            raise PayloadError(Status.BAD_LENGTH, f"{len(rest)} bytes for {n_rows + n_positions} loops")
        loops = tuple(Loop(*fields) for fields in _LOOP.iter_unpack(rest))
        return cls(base, loops[:n_rows], loops[n_rows:], _format(OutputFormat, code), step)


def _offsets(loops: tuple[Loop, ...]) -> NDArray[np.int64]:
    """What the loops add to the base, the last loop fastest."""
    offsets = np.zeros(1, np.int64)
    for loop in loops:
        offsets = (offsets[:, None] + np.arange(loop.count, dtype=np.int64) * loop.stride).ravel()
    return offsets


# trims, readings, counters


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


@dataclass(frozen=True, slots=True)
class Readings:
    """READ's answer; None for what the board does not measure."""

    temperature_c: float | None = None
    supply_mv: int | None = None
    uptime_ms: int | None = None

    def encode(self) -> bytes:
        values: Mapping[int, int | None] = {
            1: None if self.temperature_c is None else round(self.temperature_c * 100) + _ZERO_CELSIUS,
            2: self.supply_mv,
            3: self.uptime_ms,
        }
        return encode_tlvs({tag: value for tag, value in values.items() if value is not None})

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        values = decode_tlvs(payload)
        temperature, supply_mv, uptime_ms = (number(values, tag) if tag in values else None for tag in (1, 2, 3))
        return cls(None if temperature is None else (temperature - _ZERO_CELSIUS) / 100, supply_mv, uptime_ms)


@dataclass(frozen=True, slots=True)
class SelfTest:
    """How many tiles were tested, and which of them failed."""

    tested: int
    failed: tuple[int, ...] = ()

    def encode(self) -> bytes:
        return struct.pack(f"<HH{len(self.failed)}H", self.tested, len(self.failed), *self.failed)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        tested, count = head(_RANGE, payload)
        failed = as_array(payload[_RANGE.size :], count, "<u2").tolist()
        return cls(tested, tuple(failed))


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the board's start, in the order of their tags."""

    received: int = 0
    dropped: int = 0
    other_version: int = 0
    replayed: int = 0
    multiplied: int = 0
    programmed: int = 0
    sent: int = 0

    def encode(self) -> bytes:
        return encode_tlvs({tag: getattr(self, name) for tag, name in enumerate(self.__slots__, 1)})

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        values = decode_tlvs(payload)
        return cls(*(number(values, tag) for tag, _ in enumerate(cls.__slots__, 1)))


# the link


@dataclass(frozen=True, slots=True)
class U32:
    """A payload of one number: BAUD's rate, SINK's answer."""

    value: int

    def encode(self) -> bytes:
        return _packed(_U32, self.value)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        return cls(*whole(_U32, payload))


@dataclass(frozen=True, slots=True)
class Log:
    """What a board has to say, unasked."""

    level: int
    text: str

    def encode(self) -> bytes:
        return bytes((self.level,)) + self.text.encode()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Bytes that are not UTF-8 are replaced: a log is for reading."""
        if not payload:
            raise PayloadError(Status.BAD_LENGTH, "a LOG without its level")
        return cls(payload[0], payload[1:].decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class Boot:
    """A board started; its weights are gone."""

    boot_id: int

    def encode(self) -> bytes:
        return _packed(_U32, self.boot_id)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """TLVs behind the id are skipped."""
        return cls(*head(_U32, payload))
