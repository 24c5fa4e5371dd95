"""Vectors as bytes: input formats int8, int4 and zero-skipping; output formats int32, int16 and packed.

Arrays are [n, length]; each vector starts at a byte of its own.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pimcal_serial.frames import PayloadError, Status

Int8s = NDArray[np.int8]
Int32s = NDArray[np.int32]
Bytes = NDArray[np.uint8]


class InputFormat(IntEnum):
    """How input vectors travel."""

    INT8 = 0
    INT4 = 1
    ZERO_SKIPPING = 2


class OutputFormat(IntEnum):
    """How output vectors travel."""

    INT32 = 0
    INT16 = 1
    PACKED = 2


def encode_inputs(values: Int8s, form: InputFormat) -> bytes:
    """Input vectors [n, length] in a format. Raises ValueError where INT4 is to hold more than 4 bits."""
    match form:
        case InputFormat.INT8:
            return values.tobytes()
        case InputFormat.INT4:
            return _pack_nibbles(values).tobytes()
        case InputFormat.ZERO_SKIPPING:
            return _skip_zeros(values)


def decode_inputs(data: bytes, n: int, length: int, form: InputFormat) -> Int8s:
    """`n` input vectors of `length` values: [n, length].

    Raises PayloadError: BAD_LENGTH where `data` has more or fewer bytes, BAD_VALUE where surplus bits are set.
    """
    match form:
        case InputFormat.INT8:
            return as_array(data, n * length, np.int8).reshape(n, length)
        case InputFormat.INT4:
            size = _groups(length, 2)
            return _unpack_nibbles(as_array(data, n * size, np.uint8).reshape(n, size), length)
        case InputFormat.ZERO_SKIPPING:
            return _fill_zeros(data, n, length)


def encode_outputs(values: Int32s, form: OutputFormat, output_bits: int) -> bytes:
    """Output vectors [n, length] in a format; values must lie in its range. `output_bits` is for PACKED alone."""
    match form:
        case OutputFormat.INT32:
            return values.astype("<i4").tobytes()
        case OutputFormat.INT16:
            return values.astype("<i2").tobytes()
        case OutputFormat.PACKED:
            shifts = np.arange(output_bits)
            bits = (values[:, :, None] >> shifts & 1).astype(np.uint8)
            return np.packbits(_as_rows(bits), axis=1, bitorder="little").tobytes()


def decode_outputs(data: bytes, n: int, length: int, form: OutputFormat, output_bits: int) -> Int32s:
    """`n` output vectors of `length` values: [n, length]. Raises PayloadError (BAD_LENGTH) for another size."""
    match form:
        case OutputFormat.INT32:
            return as_array(data, n * length, "<i4").reshape(n, length).astype(np.int32)
        case OutputFormat.INT16:
            return as_array(data, n * length, "<i2").reshape(n, length).astype(np.int32)
        case OutputFormat.PACKED:
            return _unpack_outputs(data, n, length, output_bits)


def output_size(n: int, length: int, form: OutputFormat, output_bits: int) -> int:
    """Bytes of `n` output vectors of `length` values."""
    bits = {OutputFormat.INT32: 32, OutputFormat.INT16: 16, OutputFormat.PACKED: output_bits}[form]
    return n * _groups(length * bits, 8)


def as_array(data: bytes, size: int, dtype: DTypeLike) -> NDArray[Any]:
    """`data` as `size` numbers. Raises PayloadError (BAD_LENGTH) where it is not as long."""
    expected = size * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise PayloadError(Status.BAD_LENGTH, f"{len(data)} bytes where {expected} belong")
    return np.frombuffer(data, dtype)


def _groups(values: int, size: int) -> int:
    return -(-values // size)


def _as_rows(array: Bytes) -> Bytes:
    """Flat but for the first axis; unlike reshape(n, -1), also for empty arrays."""
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def _pack_nibbles(values: Int8s) -> Bytes:
    if values.size and (values.min() < -8 or values.max() > 7):
        raise ValueError("int4 inputs lie in -8 to 7")
    nibbles = (values & 0xF).astype(np.uint8)
    if values.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
    return np.bitwise_or(nibbles[:, ::2], nibbles[:, 1::2] << 4, dtype=np.uint8)


def _unpack_nibbles(packed: Bytes, length: int) -> Int8s:
    nibbles = np.stack((packed & 0xF, packed >> 4), axis=-1)
    nibbles = _as_rows(nibbles)
    if nibbles[:, length:].any():
        raise PayloadError(Status.BAD_VALUE, "the last half byte of an int4 vector is not 0")
    return (nibbles[:, :length].astype(np.int8) ^ 8) - np.int8(8)


def _skip_zeros(values: Int8s) -> bytes:
    occupied = values != 0
    mask = np.packbits(occupied, axis=1, bitorder="little")
    everything = np.concatenate((mask, values.view(np.uint8)), axis=1)
    return everything[np.concatenate((np.ones(mask.shape, bool), occupied), axis=1)].tobytes()


def _fill_zeros(data: bytes, n: int, length: int) -> Int8s:
    masks, values = _split_masks(data, n, _groups(length, 8))
    bits = np.frombuffer(masks, np.uint8).reshape(n, _groups(length, 8))
    occupied = np.unpackbits(bits, axis=1, bitorder="little").astype(bool)
    if occupied[:, length:].any():
        raise PayloadError(Status.BAD_VALUE, f"a mask has bits set beyond its {length} values")
    filled = np.zeros((n, length), np.int8)
    filled[occupied[:, :length]] = np.frombuffer(values, np.int8)
    return filled


def _split_masks(data: bytes, n: int, mask_size: int) -> tuple[bytes, bytes]:
    """All masks and all values, each joined: a vector's mask says where the next vector starts."""
    masks, values, start = [], [], 0
    for _ in range(n):
        mask = data[start : start + mask_size]
        end = start + mask_size + int.from_bytes(mask, "little").bit_count()
        masks.append(mask)
        values.append(data[start + mask_size : end])
        start = end
        if start > len(data):
            break
    if start != len(data):
        raise PayloadError(Status.BAD_LENGTH, f"{len(data)} bytes where masks and values take {start}")
    return b"".join(masks), b"".join(values)


def _unpack_outputs(data: bytes, n: int, length: int, output_bits: int) -> Int32s:
    size = _groups(length * output_bits, 8)
    packed = as_array(data, n * size, np.uint8).reshape(n, size)
    bits = np.unpackbits(packed, axis=1, count=length * output_bits, bitorder="little")
    bits = bits.reshape(n, length, output_bits)
    places = np.left_shift(1, np.arange(output_bits), dtype=np.int64)
    places[-1] *= -1  # two's complement
    return (bits @ places).astype(np.int32)
