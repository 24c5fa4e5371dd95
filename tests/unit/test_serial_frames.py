"""COBS and frames: against the vectors, and against garbage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimcal_serial import cobs
from pimcal_serial.frames import (
    ANSWER,
    Frame,
    FrameReader,
    MessageType,
    Status,
    decode_frame,
    encode_frame,
    encoded_size,
)

VECTORS = Path(__file__).parents[1] / "vectors"
FRAMES = json.loads((VECTORS / "frames.json").read_text())
MALFORMED = json.loads((VECTORS / "malformed.json").read_text())
MAX_FRAME = encoded_size(4096)
PING = Frame(MessageType.ECHO, 7, payload=b"\0ping\0")


def frame_of(vector: dict[str, Any]) -> Frame:
    return Frame(**{**vector["frame"], "payload": bytes.fromhex(vector["frame"]["payload"])})


def frames() -> st.SearchStrategy[Frame]:
    u8, u16 = st.integers(0, 255), st.integers(0, 0xFFFF)
    return st.builds(Frame, type=u8, sequence=u16, tile=u16, status=u8, payload=st.binary(max_size=600))


def cobs_by_hand(data: bytes) -> bytes:
    """One code and at most 254 bytes at a time, from the left, as the paper describes it."""
    encoded, rest = b"", data + b"\0"
    while rest:
        end = rest.index(0)
        if end >= 254:
            encoded, rest = encoded + b"\xff" + rest[:254], rest[254:]
            if rest == b"\0":
                break
        else:
            encoded, rest = encoded + bytes([end + 1]) + rest[:end], rest[end + 1 :]
    return encoded


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 520))))
def test_cobs_agrees_with_an_encoder_by_hand_and_comes_back(runs: list[tuple[int, int]]) -> None:
    data = b"".join(bytes([value]) * length for value, length in runs)
    encoded = cobs.encode(data)
    assert encoded == cobs_by_hand(data)
    assert cobs.decode(encoded) == data
    assert len(encoded) <= len(data) + 1 + len(data) // 254


@pytest.mark.parametrize("data", [b"", b"\0", b"\x01\0", b"\x03a", b"\xff" + b"a" * 253])
def test_what_is_not_cobs_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="COBS"):
        cobs.decode(data)


@pytest.mark.parametrize("ending", [b"", b"\x01"])
def test_a_full_last_piece_may_be_followed_by_an_empty_one(ending: bytes) -> None:
    assert cobs.decode(b"\xff" + b"a" * 254 + ending) == b"a" * 254


@pytest.mark.parametrize("vector", FRAMES, ids=lambda vector: vector["name"])
def test_frames_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    frame, line = frame_of(vector), bytes.fromhex(vector["hex"])
    assert FrameReader(MAX_FRAME).feed(line) == [frame]
    assert vector["flags"] or encode_frame(frame) == line


def test_the_vectors_cover_every_type_and_status() -> None:
    seen = [frame_of(vector) for vector in FRAMES]
    unsolicited = {MessageType.LOG, MessageType.BOOT}
    assert {frame.status for frame in seen} == set(Status)
    assert {frame.type for frame in seen} == {kind | ANSWER for kind in MessageType} | (set(MessageType) - unsolicited)


@pytest.mark.parametrize("vector", MALFORMED, ids=lambda vector: vector["name"])
def test_what_is_not_a_frame_is_counted_and_the_next_frame_is_found(vector: dict[str, Any]) -> None:
    reader = FrameReader(MAX_FRAME)
    assert reader.feed(bytes.fromhex(vector["hex"]) + encode_frame(PING)) == [PING]
    counted = {name for name in ("dropped", "other_version") if getattr(reader, name) == 1}
    assert counted == {vector["counted"]} - {"nothing"}
    assert reader.received == 1


@given(st.lists(frames(), max_size=5), st.lists(st.binary(max_size=300), min_size=6, max_size=6), st.integers(1, 64))
def test_garbage_between_frames_never_breaks_the_next_frame(sent: list[Frame], garbage: list[bytes], cut: int) -> None:
    line = b"".join(noise + b"\0" + encode_frame(frame) for noise, frame in zip(garbage, sent, strict=False))
    reader, found = FrameReader(MAX_FRAME), []
    for start in range(0, len(line), cut):
        found += reader.feed(line[start : start + cut])
    assert found == [frame for frame in sent if frame.version == 1]


@given(frames(), st.data())
def test_a_changed_byte_is_never_taken_for_the_frame(frame: Frame, data: st.DataObject) -> None:
    line = bytearray(encode_frame(frame))
    line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
    assert FrameReader(MAX_FRAME).feed(bytes(line) + b"\0") in ([], [frame])  # an earlier zero may leave it whole


def test_an_endless_frame_is_dropped_once_and_takes_no_memory() -> None:
    reader = FrameReader(encoded_size(16))
    for _ in range(1000):
        assert reader.feed(b"a" * 100) == []
    assert len(reader._partial) == 0
    assert reader.feed(b"\0" + encode_frame(PING)) == [PING]
    assert reader.dropped == 1


@pytest.mark.parametrize("size", [0, 16, 240, 242, 243, 600])
def test_the_longest_allowed_frame_fits_whatever_it_holds(size: int) -> None:
    longest = [Frame(2, 0xFFFF, payload=bytes([value]) * size) for value in (0, 255)]
    for frame in longest:
        assert FrameReader(encoded_size(size)).feed(encode_frame(frame)) == [frame]


def test_frames_of_other_versions_are_kept_apart() -> None:
    reader, other = FrameReader(MAX_FRAME), Frame(MessageType.HELLO, 3, version=2)
    assert reader.feed(encode_frame(other) + encode_frame(PING)) == [PING]
    assert reader.take_other_versions() == [other]
    assert reader.take_other_versions() == []


def test_a_received_frame_knows_its_crc() -> None:
    first, second = (decode_frame(encode_frame(Frame(2, 1, payload=payload))[:-1]) for payload in (b"a", b"b"))
    assert first.crc != second.crc
    assert first == Frame(2, 1, payload=b"a")


def test_a_field_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_frame(Frame(MessageType.MVM, 0x10000))
