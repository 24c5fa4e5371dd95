"""TLVs: u8 tag, u8 length, then an unsigned number of 1, 2, 4 or 8 bytes or text in UTF-8."""

from __future__ import annotations

from collections.abc import Mapping

from pimcal_serial.frames import PayloadError, Status

_NUMBER_SIZES = (1, 2, 4, 8)


def encode_tlvs(values: Mapping[int, int | str | bytes]) -> bytes:
    """TLVs in the mapping's order; numbers take the least bytes. Raises ValueError where a value does not fit."""
    return b"".join(_encode(tag, value) for tag, value in values.items())


def decode_tlvs(data: bytes) -> dict[int, bytes]:
    """Values by tag; of a repeated tag the last. Raises PayloadError (BAD_LENGTH) where a TLV reaches past the end."""
    values: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        if position + 2 > len(data) or position + 2 + data[position + 1] > len(data):
            raise PayloadError(Status.BAD_LENGTH, f"TLV at byte {position} of {len(data)} reaches past the end")
        end = position + 2 + data[position + 1]
        values[data[position]] = data[position + 2 : end]
        position = end
    return values


def number(values: Mapping[int, bytes], tag: int) -> int:
    """A tag's number, 0 where it is missing. Raises PayloadError (BAD_VALUE) for a size that no number has."""
    value = values.get(tag, b"\0")
    if len(value) not in _NUMBER_SIZES:
        raise PayloadError(Status.BAD_VALUE, f"TLV {tag} has {len(value)} bytes; a number has 1, 2, 4 or 8")
    return int.from_bytes(value, "little")


def text(values: Mapping[int, bytes], tag: int) -> str:
    """A tag's text, empty where it is missing. Raises PayloadError (BAD_VALUE) where it is not UTF-8."""
    try:
        return values.get(tag, b"").decode()
    except UnicodeDecodeError as error:
        raise PayloadError(Status.BAD_VALUE, f"TLV {tag} is not UTF-8: {error}") from error


def _encode(tag: int, value: int | str | bytes) -> bytes:
    content = _number_bytes(tag, value) if isinstance(value, int) else _text_bytes(value)
    if not 0 <= tag <= 255 or len(content) > 255:
        raise ValueError(f"TLV {tag} with {len(content)} bytes does not fit; tag and length are at most 255")
    return bytes((tag, len(content))) + content


def _number_bytes(tag: int, value: int) -> bytes:
    for size in _NUMBER_SIZES:
        if 0 <= value < 256**size:
            return value.to_bytes(size, "little")
    raise ValueError(f"TLV {tag}: {value} is not an unsigned number of at most 8 bytes")


def _text_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
