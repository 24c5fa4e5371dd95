"""HELLO: who the peers are and what the board can do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Self

from pimcal_serial.tlv import decode_tlvs, encode_tlvs, number, text


class Capability(IntFlag):
    """What a board can do beyond the necessary; HELLO's capability bits."""

    INT4_INPUTS = 1
    ZERO_SKIPPING = 2
    PACKED_OUTPUTS = 4
    INPUT_BUFFER = 8
    BAUD = 16
    TRIMS = 32


_NONE = Capability(0)


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
