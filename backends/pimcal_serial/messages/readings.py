"""READ, SELFTEST and STATS: how a board fares."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pimcal_serial.inputs import as_array
from pimcal_serial.messages.fields import PAIR, head
from pimcal_serial.tlv import decode_tlvs, encode_tlvs, number

_ZERO_CELSIUS = 27315  # in 1/100 K


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
        tested, count = head(PAIR, payload)
        failed = as_array(payload[PAIR.size :], count, "<u2").tolist()
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
