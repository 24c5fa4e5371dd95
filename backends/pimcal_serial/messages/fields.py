"""Fixed parts of payloads."""

from __future__ import annotations

import struct
from typing import Any, TypeVar

from pimcal_serial.frames import PayloadError, Status
from pimcal_serial.inputs import InputFormat, OutputFormat

U16_FIELD = struct.Struct("<H")
U32_FIELD = struct.Struct("<I")
PAIR = struct.Struct("<HH")

_Format = TypeVar("_Format", InputFormat, OutputFormat)


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


def known_format(kind: type[_Format], code: int) -> _Format:
    """The format with this code. Raises PayloadError (OUT_OF_RANGE) where there is none."""
    try:
        return kind(code)
    except ValueError as error:
        raise PayloadError(Status.OUT_OF_RANGE, f"no {kind.__name__} {code}") from error


def packed(layout: struct.Struct, *fields: int) -> bytes:
    """The fixed part as bytes. Raises ValueError where a number does not fit its field."""
    try:
        return layout.pack(*fields)
    except struct.error as error:
        raise ValueError(f"{fields} do not fit the payload: {error}") from error
