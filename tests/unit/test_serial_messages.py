"""Payloads, TLVs and vector formats: against the vectors, and there and back."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pimcal_serial.frames import ANSWER, MessageType, PayloadError, Status, decode_frame
from pimcal_serial.inputs import (
    InputFormat,
    OutputFormat,
    decode_inputs,
    decode_outputs,
    encode_inputs,
    encode_outputs,
    output_size,
)
from pimcal_serial.messages import (
    U32,
    BoardInfo,
    Boot,
    HostInfo,
    Log,
    Loop,
    Mvm,
    MvmGather,
    MvmResult,
    Program,
    ProgramResult,
    Readback,
    ReadbackResult,
    Readings,
    SelfTest,
    Stats,
    Trims,
    WriteBuffer,
)
from pimcal_serial.tlv import decode_tlvs, encode_tlvs, number, text

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
EXCHANGES = json.loads((VECTORS / "exchanges.json").read_text())
FRAMES = [vector for vector in json.loads((VECTORS / "frames.json").read_text()) if not vector["frame"]["status"]]
FORMATS = json.loads((VECTORS / "formats.json").read_text())
T = MessageType
SHAPES = st.tuples(st.integers(0, 4), st.integers(1, 40))
INT8 = arrays.arrays(np.int8, SHAPES, elements=st.integers(-127, 127) | st.just(0))
INT4 = arrays.arrays(np.int8, SHAPES, elements=st.integers(-7, 7))


def decoded(kind: int, payload: bytes, meaning: dict[str, Any]) -> Any:
    """The message in a vector's payload, told what a payload does not say itself."""
    match kind:
        case T.MVM:
            return Mvm.decode(payload)
        case _ if kind in (T.MVM | ANSWER, T.MVM_GATHER | ANSWER):
            form, bits = OutputFormat(meaning["output_format"]), meaning["output_bits"]
            return MvmResult.decode(payload, meaning["count"], meaning["cols"], form, bits)
        case _ if kind == T.READBACK | ANSWER:
            return ReadbackResult.decode(payload, len(meaning["weights"]))
        case _ if kind in (T.SET_TRIM, T.GET_TRIM | ANSWER):
            return Trims.decode(payload, len(meaning["gain"]))
        case _:
            return PLAIN[kind].decode(payload)


PLAIN: dict[int, Any] = {
    T.HELLO: HostInfo,
    T.HELLO | ANSWER: BoardInfo,
    T.SINK | ANSWER: U32,
    T.BAUD: U32,
    T.LOG | ANSWER: Log,
    T.BOOT | ANSWER: Boot,
    T.PROGRAM: Program,
    T.PROGRAM | ANSWER: ProgramResult,
    T.READBACK: Readback,
    T.READ | ANSWER: Readings,
    T.SELFTEST | ANSWER: SelfTest,
    T.STATS | ANSWER: Stats,
    T.WRITE_BUFFER: WriteBuffer,
    T.MVM_GATHER: MvmGather,
}
WITH_MEANING = [vector for vector in FRAMES if vector["meaning"] and "data" not in vector["meaning"]]


def plain(value: Any) -> Any:
    """As JSON would have it."""
    return json.loads(json.dumps(value, default=lambda array: array.tolist()))


def shape_of(values: np.ndarray) -> tuple[int, int]:
    n, length = values.shape
    return n, length


def meaning_of(message: Any) -> dict[str, Any]:
    found = {field.name: getattr(message, field.name) for field in fields(message)}
    for name in ("row_loops", "position_loops"):
        if name in found:
            found[name] = [tuple(asdict(loop).values()) for loop in found[name]]
            found["addresses"] = message.addresses()
    if isinstance(message, Mvm | MvmGather):
        found["rows"] = message.rows
    return plain(found)


@pytest.mark.parametrize("vector", WITH_MEANING, ids=lambda vector: vector["name"])
def test_payloads_mean_what_the_vectors_say(vector: dict[str, Any]) -> None:
    found = meaning_of(decoded(vector["frame"]["type"], bytes.fromhex(vector["frame"]["payload"]), vector["meaning"]))
    told = {name: value for name, value in vector["meaning"].items() if name in found}
    assert told
    assert {name: found[name] for name in told} == told


@pytest.mark.parametrize("vector", WITH_MEANING, ids=lambda vector: vector["name"])
def test_payloads_are_encoded_as_in_the_vectors(vector: dict[str, Any]) -> None:
    payload, meaning = bytes.fromhex(vector["frame"]["payload"]), vector["meaning"]
    message = decoded(vector["frame"]["type"], payload, meaning)
    if isinstance(message, MvmResult):
        assert message.encode(OutputFormat(meaning["output_format"]), meaning["output_bits"]) == payload
    elif isinstance(message, HostInfo | BoardInfo | Readings | Stats | Boot):  # may be written in more than one way
        assert type(message).decode(message.encode()) == message
    else:
        assert message.encode() == payload


@pytest.mark.parametrize("vector", FORMATS, ids=lambda v: f"{v['direction']}-{v['format']}-{v['hex'][:12]}")
def test_vector_formats_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    values, data = np.array(vector["values"]), bytes.fromhex(vector["hex"])
    if vector["direction"] == "in":
        form = InputFormat(vector["format"])
        assert encode_inputs(values.astype(np.int8), form) == data
        assert decode_inputs(data, *shape_of(values), form).tolist() == values.tolist()
    else:
        output_form, bits = OutputFormat(vector["format"]), vector["bits"]
        assert encode_outputs(values.astype(np.int32), output_form, bits) == data
        assert decode_outputs(data, *shape_of(values), output_form, bits).tolist() == values.tolist()
        assert output_size(*shape_of(values), output_form, bits) == len(data)


def test_the_vectors_are_what_their_program_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-B", str(VECTORS / "make_vectors.py"), str(tmp_path)], check=True)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in VECTORS.glob("*.json")}


PAGE = (ROOT / "docs" / "protocol.md").read_text()
EXAMPLES = re.findall(r"^content: (.+)\nline: +(.+)$", PAGE, re.MULTILINE)


def test_the_protocols_page_has_its_examples() -> None:
    assert len(EXAMPLES) == PAGE.count("\ncontent:") == PAGE.count("\nline:") == 13


@pytest.mark.parametrize(("content", "line"), EXAMPLES)
def test_the_examples_of_the_protocols_page_are_vectors(content: str, line: str) -> None:
    vectors = {vector["hex"] for vector in FRAMES} | {
        step[side] for step in EXCHANGES for side in ("request", "answer")
    }
    assert bytes.fromhex(line).hex() in vectors
    header, payload, crc = map(bytes.fromhex, content.split("|"))
    frame = decode_frame(bytes.fromhex(line).rstrip(b"\0"))
    fields = struct.pack("<BBHHBB", frame.version, frame.type, frame.sequence, frame.tile, frame.status, 0)
    assert (header, payload, crc) == (fields, frame.payload, frame.crc.to_bytes(4, "little"))


def nibbles_by_hand(vector: list[int]) -> list[int]:
    halves = [value & 15 for value in vector] + [0]
    return [halves[at] + 16 * halves[at + 1] for at in range(0, len(vector), 2)]


def zero_skipped_by_hand(vector: list[int]) -> list[int]:
    mask = [sum(1 << bit for bit, value in enumerate(vector[at : at + 8]) if value) for at in range(0, len(vector), 8)]
    return [*mask, *(value & 255 for value in vector if value)]


@given(INT4)
def test_int4_inputs_agree_with_packing_by_hand_and_come_back(values: np.ndarray) -> None:
    data = encode_inputs(values, InputFormat.INT4)
    assert list(data) == [byte for vector in values.tolist() for byte in nibbles_by_hand(vector)]
    assert decode_inputs(data, *shape_of(values), InputFormat.INT4).tolist() == values.tolist()


@given(INT8)
def test_zero_skipping_agrees_with_masks_by_hand_and_comes_back(values: np.ndarray) -> None:
    data = encode_inputs(values, InputFormat.ZERO_SKIPPING)
    assert list(data) == [byte for vector in values.tolist() for byte in zero_skipped_by_hand(vector)]
    assert decode_inputs(data, *shape_of(values), InputFormat.ZERO_SKIPPING).tolist() == values.tolist()


@given(INT8, st.sampled_from(InputFormat), st.integers(1, 3))
def test_input_vectors_cut_short_or_too_long_are_refused(values: np.ndarray, form: InputFormat, by: int) -> None:
    data = encode_inputs(values // 16, form)
    for wrong in (data + bytes(by), data[:-by]):
        if wrong != data:
            with pytest.raises(PayloadError) as refused:
                decode_inputs(wrong, *shape_of(values), form)
            assert refused.value.status == Status.BAD_LENGTH


@pytest.mark.parametrize(
    ("data", "length", "form"), [(b"\x11\x10", 3, InputFormat.INT4), (b"\x10\x05", 4, InputFormat.ZERO_SKIPPING)]
)
def test_surplus_bits_are_refused(data: bytes, length: int, form: InputFormat) -> None:
    with pytest.raises(PayloadError) as refused:
        decode_inputs(data, 1, length, form)
    assert refused.value.status == Status.BAD_VALUE


def test_what_does_not_fit_int4_is_not_sent() -> None:
    with pytest.raises(ValueError, match="int4"):
        encode_inputs(np.array([[8]], np.int8), InputFormat.INT4)


@given(st.integers(2, 20), SHAPES, st.randoms())
def test_packed_outputs_come_back(bits: int, shape: tuple[int, int], random: Any) -> None:
    top = 2 ** (bits - 1) - 1
    values = np.array([random.randint(-top, top) for _ in range(shape[0] * shape[1])], np.int32).reshape(shape)
    data = encode_outputs(values, OutputFormat.PACKED, bits)
    assert len(data) == shape[0] * -(-shape[1] * bits // 8)
    assert decode_outputs(data, *shape, OutputFormat.PACKED, bits).tolist() == values.tolist()


TLV_VALUES = st.integers(0, 2**64 - 1) | st.text(max_size=60) | st.binary(max_size=255)


@given(st.dictionaries(st.integers(0, 255), TLV_VALUES))
def test_tlvs_come_back(values: dict[int, int | str | bytes]) -> None:
    found = decode_tlvs(encode_tlvs(values))
    assert list(found) == list(values)
    for tag, value in values.items():
        if isinstance(value, int):
            assert number(found, tag) == value
        elif isinstance(value, str):
            assert text(found, tag) == value
        else:
            assert found[tag] == value


@pytest.mark.parametrize("values", [{256: 1}, {-1: 1}, {1: -1}, {1: 2**64}, {1: "x" * 256}])
def test_a_tlv_that_does_not_fit_is_refused(values: dict[int, int | str]) -> None:
    with pytest.raises(ValueError, match="TLV"):
        encode_tlvs(values)


@pytest.mark.parametrize("data", [b"\x01", b"\x01\x02\x00", b"\x01\x01\x00\x05"])
def test_a_tlv_past_the_end_is_refused(data: bytes) -> None:
    with pytest.raises(PayloadError) as refused:
        decode_tlvs(data)
    assert refused.value.status == Status.BAD_LENGTH


@pytest.mark.parametrize("payload", [encode_tlvs({2: b"\0" * 3}), encode_tlvs({6: b""}), encode_tlvs({3: b"\xff"})])
def test_hello_with_a_value_of_the_wrong_kind_is_refused(payload: bytes) -> None:
    with pytest.raises(PayloadError) as refused:
        BoardInfo.decode(payload)
    assert refused.value.status == Status.BAD_VALUE


def test_missing_tags_are_zero_and_missing_readings_are_none() -> None:
    assert BoardInfo.decode(b"") == BoardInfo()
    assert Readings.decode(b"") == Readings(None, None, None)
    assert Stats.decode(b"") == Stats()


@pytest.mark.parametrize("celsius", [-273.15, -40.0, 0.0, 0.01, 25.37, 200.0])
def test_temperatures_come_back_to_a_hundredth_of_a_degree(celsius: float) -> None:
    assert Readings.decode(Readings(celsius).encode()).temperature_c == celsius


DECODERS: list[Any] = [Program, ProgramResult, Readback, Mvm, WriteBuffer, MvmGather, SelfTest, U32, Log, Boot]
DECODERS += [BoardInfo, HostInfo, Readings, Stats]


@given(st.sampled_from(DECODERS), st.binary(max_size=40))
def test_any_bytes_are_a_message_or_refused(message: Any, payload: bytes) -> None:
    try:
        message.decode(payload)
    except PayloadError as error:
        assert error.status in (Status.BAD_LENGTH, Status.OUT_OF_RANGE, Status.BAD_VALUE)


def test_more_than_three_loops_are_refused() -> None:
    gather = MvmGather(0, (Loop(1, 1),) * 4, ())
    with pytest.raises(PayloadError) as refused:
        MvmGather.decode(gather.encode())
    assert refused.value.status == Status.OUT_OF_RANGE


@pytest.mark.parametrize("payload", [b"\x03\x00" + bytes(14), b"\x00\x03" + bytes(14)])
def test_unknown_formats_are_refused(payload: bytes) -> None:
    with pytest.raises(PayloadError) as refused:
        Mvm.decode(payload)
    assert refused.value.status == Status.OUT_OF_RANGE


def test_a_convolutions_patches_are_those_of_unfold() -> None:
    """Rows are (channel, kernel row, kernel column), positions (output row, output column)."""
    import torch

    image = torch.arange(2 * 5 * 6.0).reshape(1, 2, 5, 6)
    gather = MvmGather(0, (Loop(2, 30), Loop(3, 6), Loop(2, 1)), (Loop(2, 12), Loop(3, 2)))
    patches = torch.nn.functional.unfold(image, (3, 2), stride=2)[0].T
    assert np.array_equal(gather.addresses(), patches.numpy())
    assert (gather.positions, gather.rows) == tuple(patches.shape)
