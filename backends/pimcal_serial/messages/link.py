"""SINK, BAUD, LOG and BOOT: the link itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from pimcal_serial.frames import PayloadError, Status
from pimcal_serial.messages.fields import U32_FIELD, head, packed, whole


class LogLevel(IntEnum):
    """How urgent a board's LOG is."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class U32:
    """A payload of one number: BAUD's rate, SINK's answer."""

    value: int

    def encode(self) -> bytes:
        return packed(U32_FIELD, self.value)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        return cls(*whole(U32_FIELD, payload))


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
        return packed(U32_FIELD, self.boot_id)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """TLVs behind the id are skipped."""
        return cls(*head(U32_FIELD, payload))
