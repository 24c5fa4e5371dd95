"""Frames on the line: `COBS(header | payload | CRC-32) 0x00`; see docs/protocol.md."""

from __future__ import annotations

import struct
import zlib
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

from pimcal_serial import cobs

VERSION = 1
NO_TILE = 0xFFFF
ANSWER = 0x80  # the bit that makes an answer's type of a request's

_HEADER = struct.Struct("<BBHHBB")
_CRC = struct.Struct("<I")
OVERHEAD = _HEADER.size + _CRC.size  # bytes of a frame beside its payload, before COBS


class MessageType(IntEnum):
    """What is asked. Answers carry `type | ANSWER`; LOG and BOOT come unasked, with that bit, too."""

    HELLO = 0x01
    ECHO = 0x02
    SINK = 0x03
    PROGRAM = 0x10
    READBACK = 0x11
    MVM = 0x12
    READ = 0x13
    SELFTEST = 0x14
    GET_TRIM = 0x15
    SET_TRIM = 0x16
    STATS = 0x17
    BAUD = 0x18
    RESET = 0x19
    WRITE_BUFFER = 0x20
    MVM_GATHER = 0x21
    LOG = 0x70
    BOOT = 0x71


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    VERSION = 1
    UNKNOWN_TYPE = 2
    BAD_LENGTH = 3
    OUT_OF_RANGE = 4
    BAD_VALUE = 5
    NOT_PROGRAMMED = 6
    BUSY = 7
    FAULT = 8


class PayloadError(ValueError):
    """A payload that does not mean anything; `status` is what a board answers to it."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; `type` and `status` are plain numbers, as a peer may know more of them.

    `crc` is the one that a received frame came with; 0 in frames that are yet to be sent.
    """

    type: int
    sequence: int
    tile: int = NO_TILE
    status: int = Status.OK
    payload: bytes = b""
    version: int = VERSION
    crc: int = field(default=0, compare=False)


def encode_frame(frame: Frame) -> bytes:
    """The frame's bytes on the line, with the zero that ends it. Raises ValueError where a field does not fit."""
    fields = (frame.version, frame.type, frame.sequence, frame.tile, frame.status, 0)
    try:
        body = _HEADER.pack(*fields) + frame.payload
    except struct.error as error:
        raise ValueError(f"frame {fields} does not fit its header: {error}") from error
    return cobs.encode(body + _CRC.pack(zlib.crc32(body))) + b"\0"


def decode_frame(encoded: bytes) -> Frame:
    """The frame of what stood between two zeros, of any version. Raises ValueError where it is not a frame."""
    data = cobs.decode(encoded)
    if len(data) < OVERHEAD:
        raise ValueError(f"{len(data)} bytes are too few for a frame")
    body = data[: -_CRC.size]
    (crc,) = _CRC.unpack_from(data, len(body))
    if zlib.crc32(body) != crc:
        raise ValueError("wrong CRC")
    version, kind, sequence, tile, status, _ = _HEADER.unpack_from(body)
    return Frame(kind, sequence, tile, status, body[_HEADER.size :], version, crc)


def encoded_size(payload: int) -> int:
    """The most bytes that a frame with so many bytes of payload takes on the line, its final zero included."""
    size = OVERHEAD + payload
    return size + size // 254 + 2


class FrameReader:
    """Finds frames in a stream of bytes, whatever comes between them.

    A frame longer than `max_frame` bytes on the line (see `encoded_size`) is dropped; no more is ever buffered.
    `received` counts intact frames of `version`, `dropped` whatever was no frame, `other_version` intact frames of
    another version; the last few of these are kept for `take_other_versions`.
    """

    def __init__(self, max_frame: int, version: int = VERSION) -> None:
        self.received = 0
        self.dropped = 0
        self.other_version = 0
        self._max_frame = max_frame
        self._version = version
        self._others: deque[Frame] = deque(maxlen=16)
        self._partial = bytearray()
        self._overflowed = False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames of this version that `data` completes, in their order."""
        *ended, rest = data.split(b"\0")
        frames = []
        for piece in ended:
            self._append(piece)
            frame = self._finish()
            if frame is not None:
                frames.append(frame)
        self._append(rest)
        return frames

    def take_other_versions(self) -> list[Frame]:
        """The frames of other versions since the last call, at most 16."""
        others = list(self._others)
        self._others.clear()
        return others

    def clear(self) -> None:
        """Forget an unfinished frame, as after the line was opened anew."""
        self._partial.clear()
        self._overflowed = False

    def _append(self, piece: bytes) -> None:
        if len(self._partial) + len(piece) >= self._max_frame:  # one byte is for the zero
            self._overflowed = True
            self._partial.clear()
        if not self._overflowed:
            self._partial += piece

    def _finish(self) -> Frame | None:
        encoded, overflowed = bytes(self._partial), self._overflowed
        self.clear()
        if overflowed:
            self.dropped += 1
            return None
        return self._counted(encoded) if encoded else None

    def _counted(self, encoded: bytes) -> Frame | None:
        try:
            frame = decode_frame(encoded)
        except ValueError:
            self.dropped += 1
            return None
        if frame.version != self._version:
            self.other_version += 1
            self._others.append(frame)
            return None
        self.received += 1
        return frame
