"""The virtual board, spoken to in bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimcal_serial.frames import ANSWER, Frame, FrameReader, MessageType, Status, encode_frame, encoded_size
from pimcal_serial.inputs import InputFormat, OutputFormat
from pimcal_serial.messages import (
    U32,
    BoardInfo,
    Boot,
    Capability,
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
from pimcal_serial.simulator.board import Board
from pimcal_serial.simulator.settings import ArraySettings, BoardSettings

T = MessageType
VECTORS = Path(__file__).parents[1] / "vectors"
PRODUCTS = json.loads((VECTORS / "products.json").read_text())
EXCHANGES = json.loads((VECTORS / "exchanges.json").read_text())
SMALL = BoardSettings(tiles=2, rows=12, cols=6, max_payload=400, buffer_bytes=64)
RNG = np.random.default_rng(5)
WEIGHTS = RNG.integers(-127, 128, (12, 6)).astype(np.int8)
INPUTS = RNG.integers(-127, 128, (3, 12)).astype(np.int8)


class Host:
    """Asks a board and reads its answers; each request has a sequence number of its own."""

    def __init__(self, settings: BoardSettings = SMALL) -> None:
        self.board, self.sequence, self.now_s = Board(settings), 0, 0.0
        self.reader = FrameReader(encoded_size(2**20), settings.protocol_version)
        (self.boot,) = self.reader.feed(self.board.start())[:1]

    def send(self, line: bytes) -> list[Frame]:
        return self.reader.feed(self.board.receive(line, self.now_s))

    def request(self, kind: int, payload: bytes = b"", tile: int = 0xFFFF) -> Frame:
        self.sequence += 1
        return Frame(kind, self.sequence, tile, payload=payload)

    def ask(self, kind: int, payload: bytes = b"", tile: int = 0xFFFF) -> Frame:
        request = self.request(kind, payload, tile)
        (answer,) = self.send(encode_frame(request))
        assert (answer.type, answer.sequence, answer.tile) == (kind | ANSWER, request.sequence, tile)
        assert answer.status in (Status.OK, Status.FAULT) or not answer.payload
        return answer

    def program(self, weights: np.ndarray, tile: int = 0, id_: int = 1) -> None:
        answer = self.ask(T.PROGRAM, Program(len(weights), 0, id_, weights).encode(), tile)
        assert ProgramResult.decode(answer.payload).missing == 0

    def mvm(self, inputs: np.ndarray, tile: int = 0, form: OutputFormat = OutputFormat.INT32) -> np.ndarray:
        answer = self.ask(T.MVM, Mvm(inputs, output_format=form).encode(), tile)
        cols = (len(answer.payload) - 4) // 4 // max(len(inputs), 1)
        return MvmResult.decode(answer.payload, len(inputs), cols, form, 0).outputs

    def stats(self) -> Stats:
        return Stats.decode(self.ask(T.STATS).payload)


def exact(weights: np.ndarray, inputs: np.ndarray) -> list[list[int]]:
    """In Python's own numbers."""
    return [
        [sum(int(x) * int(row[j]) for x, row in zip(vector, weights, strict=True)) for j in range(weights.shape[1])]
        for vector in inputs
    ]


def test_a_start_is_announced_with_a_new_boot_id() -> None:
    board = Board(SMALL, boot_id=7)
    boots = [FrameReader(1000).feed(board.start())[0] for _ in range(2)]
    assert [boot.type for boot in boots] == [T.BOOT | ANSWER] * 2
    assert [Boot.decode(boot.payload).boot_id for boot in boots] == [7, 8]


def test_hello_tells_what_the_settings_say() -> None:
    settings = SMALL.model_copy(update={"capabilities": ("baud", "int4_inputs"), "output_bits": 10})
    info = BoardInfo.decode(Host(settings).ask(T.HELLO, HostInfo("test").encode()).payload)
    assert (info.tiles, info.rows, info.cols, info.output_bits, info.boot_id) == (2, 12, 6, 10, 1)
    assert info.capabilities == Capability.BAUD | Capability.INT4_INPUTS
    assert (info.serial_number, info.max_payload, info.window, info.replay) == ("SIM-0001", 400, 4, 8)


def test_echo_and_sink() -> None:
    host = Host()
    assert host.ask(T.ECHO, b"\0abc").payload == b"\0abc"
    assert U32.decode(host.ask(T.SINK, bytes(300)).payload) == U32(300)


@pytest.mark.parametrize("vector", PRODUCTS)
def test_products_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    host = Host(SMALL.model_copy(update={"output_bits": vector["output_bits"]}))
    host.program(np.array(vector["weights"], np.int8))
    trims = Trims(np.array(vector["offset"], np.int16), np.array(vector["gain"], np.uint16))
    host.ask(T.SET_TRIM, trims.encode(), tile=0)
    assert host.ask(T.GET_TRIM, tile=0).payload == trims.encode()
    form, inputs = OutputFormat(vector["output_format"]), np.array(vector["inputs"], np.int8)
    part = {name: vector[name] for name in ("step", "first_row", "first_col", "cols")}
    answer = host.ask(T.MVM, Mvm(inputs, output_format=form, **part).encode(), tile=0)
    result = MvmResult.decode(answer.payload, len(inputs), len(vector["outputs"][0]), form, vector["output_bits"])
    assert (result.outputs.tolist(), result.saturated) == (vector["outputs"], vector["saturated"])


@pytest.mark.parametrize("name", sorted({step["exchange"] for step in EXCHANGES}))
def test_the_exchanges_of_the_vectors_are_answered_byte_by_byte(name: str) -> None:
    steps = [step for step in EXCHANGES if step["exchange"] == name]
    board = Board(SMALL.model_copy(update={"output_bits": steps[0]["output_bits"]}))
    board.start()
    for step in steps:
        answer = board.receive(bytes.fromhex(step["request"]), 0.0).hex()
        assert (step["says"], answer) == (step["says"], step["answer"])


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 5), st.sampled_from(InputFormat), st.integers(0, 2**32))
def test_a_board_without_noise_is_exact(rows: int, cols: int, n: int, form: InputFormat, seed: int) -> None:
    rng, host = np.random.default_rng(seed), Host()
    weights = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
    top = 7 if form == InputFormat.INT4 else 127
    inputs = (rng.integers(-top, top + 1, (n, rows)) * rng.integers(0, 2, (n, rows))).astype(np.int8)
    host.program(weights)
    answer = host.ask(T.MVM, Mvm(inputs, form).encode(), tile=0)
    assert MvmResult.decode(answer.payload, n, cols, OutputFormat.INT32, 0).outputs.tolist() == exact(weights, inputs)


@st.composite
def parts(draw: st.DrawFn) -> tuple[slice, slice]:
    """Some rows and some columns of WEIGHTS."""
    found = []
    for size in WEIGHTS.shape:
        first = draw(st.integers(0, size - 1))
        found.append(slice(first, draw(st.integers(first + 1, size))))
    return found[0], found[1]


@given(
    parts(),
    st.integers(0, 4),
    st.sampled_from(
        [(OutputFormat.INT32, 0), (OutputFormat.INT16, 0), (OutputFormat.INT16, 9), (OutputFormat.PACKED, 9)]
    ),
    st.sampled_from([1, 7, 500]),
    st.integers(0, 2**32),
)
def test_a_product_on_a_part_is_that_part_of_the_product_on_the_whole_tile(
    part: tuple[slice, slice], n: int, output: tuple[OutputFormat, int], step: int, seed: int
) -> None:
    (rows, cols), (form, bits), rng = part, output, np.random.default_rng(seed)
    step = step if bits else 1
    host = Host(SMALL.model_copy(update={"output_bits": bits}))
    host.program(WEIGHTS)
    trims = Trims(rng.integers(-(2**15), 2**15, 6).astype(np.int16), rng.integers(0, 2**16, 6).astype(np.uint16))
    host.ask(T.SET_TRIM, trims.encode(), tile=0)
    padded = np.zeros((n, 12), np.int8)
    padded[:, rows] = rng.integers(-127, 128, padded[:, rows].shape)
    asked = {"first_row": rows.start, "first_col": cols.start, "cols": 0 if cols.stop == 6 else cols.stop - cols.start}

    def outputs(kind: MessageType, payload: bytes, cols: int) -> tuple[list[list[int]], int]:
        answer = host.ask(kind, payload, tile=0)
        assert answer.status == Status.OK
        result = MvmResult.decode(answer.payload, n, cols, form, bits)
        return result.outputs.tolist(), result.saturated

    whole, _ = outputs(T.MVM, Mvm(padded, output_format=form, step=step).encode(), 6)
    expected = [vector[cols] for vector in whole]
    singly = [Mvm(padded, output_format=form, step=step, first_col=col, cols=1) for col in range(6)[cols]]
    clipped = sum(outputs(T.MVM, mvm.encode(), 1)[1] for mvm in singly)
    inputs = np.ascontiguousarray(padded[:, rows])
    mvm = Mvm(inputs, output_format=form, step=step, **asked)
    assert outputs(T.MVM, mvm.encode(), cols.stop - cols.start) == (expected, clipped)

    host.ask(T.WRITE_BUFFER, WriteBuffer(3, inputs.ravel()).encode())
    loops = (Loop(inputs.shape[1], 1),), (Loop(n, inputs.shape[1]),)
    gather = MvmGather(3, *loops, form, step, **asked)
    assert outputs(T.MVM_GATHER, gather.encode(), cols.stop - cols.start) == (expected, clipped)


def test_rows_may_arrive_in_any_order() -> None:
    host, missing = Host(), []
    for first in (8, 0, 4):
        part = Program(12, first, 3, WEIGHTS[first : first + 4]).encode()
        assert host.ask(T.MVM, Mvm(INPUTS).encode(), tile=1).status == Status.NOT_PROGRAMMED
        missing.append(ProgramResult.decode(host.ask(T.PROGRAM, part, tile=1).payload).missing)
    assert missing == [8, 4, 0]
    assert host.mvm(INPUTS, tile=1).tolist() == exact(WEIGHTS, INPUTS)
    answer = host.ask(T.READBACK, Readback(2, 7).encode(), tile=1)
    found = ReadbackResult.decode(answer.payload, 7)
    assert (found.rows, found.weights.tolist()) == (12, WEIGHTS[2:9].tolist())


def test_a_new_programming_empties_the_tile_and_its_trims() -> None:
    host = Host()
    host.program(WEIGHTS)
    host.ask(T.SET_TRIM, Trims(np.ones(6, np.int16), np.ones(6, np.uint16)).encode(), tile=0)
    host.ask(T.PROGRAM, Program(12, 0, 2, WEIGHTS[:4]).encode(), tile=0)
    assert host.ask(T.READBACK, Readback(0, 1).encode(), tile=0).status == Status.NOT_PROGRAMMED
    host.program(WEIGHTS, id_=3)
    trims = Trims.decode(host.ask(T.GET_TRIM, tile=0).payload, 6)
    assert (trims.offset.tolist(), trims.gain.tolist()) == ([0] * 6, [16384] * 6)


def test_a_gathered_convolution_is_the_product_of_its_patches() -> None:
    import torch

    host, rng = Host(), np.random.default_rng(1)
    image = rng.integers(-127, 128, (1, 2, 4, 5)).astype(np.int8)
    kernels = rng.integers(-127, 128, (3, 2, 2, 3)).astype(np.int8)
    host.program(kernels.reshape(3, 12).T.copy())
    for form, start in ((InputFormat.INT8, 0), (InputFormat.ZERO_SKIPPING, 20)):
        values = image.ravel()[start : start + 20]
        assert not host.ask(T.WRITE_BUFFER, WriteBuffer(7 + start, values, form).encode()).status
    gather = MvmGather(7, (Loop(2, 20), Loop(2, 5), Loop(3, 1)), (Loop(3, 5), Loop(3, 1)))
    answer = host.ask(T.MVM_GATHER, gather.encode(), tile=0)
    outputs = MvmResult.decode(answer.payload, 9, 3, OutputFormat.INT32, 0).outputs
    expected = torch.nn.functional.conv2d(torch.tensor(image).double(), torch.tensor(kernels).double())
    assert outputs.T.tolist() == expected.reshape(3, 9).tolist()


def test_what_was_not_written_is_zero_in_the_buffer() -> None:
    host = Host()
    host.program(WEIGHTS)
    answer = host.ask(T.MVM_GATHER, MvmGather(0, (Loop(12, 1),), ()).encode(), tile=0)
    assert not any(answer.payload)


MVM = Mvm(INPUTS).encode()
BIG = 127 * np.ones((2, 6), np.int8)
REFUSED = {
    "unknown type": (0x55, b"", 0, Status.UNKNOWN_TYPE),
    "no such tile": (T.MVM, MVM, 2, Status.OUT_OF_RANGE),
    "no tile": (T.MVM, MVM, 0xFFFF, Status.OUT_OF_RANGE),
    "a tile without weights": (T.MVM, MVM, 1, Status.NOT_PROGRAMMED),
    "vectors cut short": (T.MVM, MVM[:-1], 0, Status.BAD_LENGTH),
    "surplus bytes": (T.MVM, MVM + b"\0", 0, Status.BAD_LENGTH),
    "no header": (T.MVM, b"\0\0", 0, Status.BAD_LENGTH),
    "unknown input format": (T.MVM, b"\x03" + MVM[1:], 0, Status.OUT_OF_RANGE),
    "unknown output format": (T.MVM, b"\0\x07" + MVM[2:], 0, Status.OUT_OF_RANGE),
    "packed without a converter": (T.MVM, b"\0\x02" + MVM[2:], 0, Status.OUT_OF_RANGE),
    "step 0": (T.MVM, Mvm(INPUTS, step=0).encode(), 0, Status.OUT_OF_RANGE),
    "a step without a converter": (T.MVM, Mvm(INPUTS, step=2).encode(), 0, Status.OUT_OF_RANGE),
    "an input of -128": (T.MVM, MVM[:-1] + b"\x80", 0, Status.BAD_VALUE),
    "an answer that is too long": (T.MVM, Mvm(np.zeros((17, 12), np.int8)).encode(), 0, Status.OUT_OF_RANGE),
    "more than max_payload": (T.ECHO, bytes(401), 0xFFFF, Status.BAD_LENGTH),
    "rows beyond the matrix": (T.PROGRAM, Program(12, 11, 9, BIG).encode(), 0, Status.OUT_OF_RANGE),
    "a matrix beyond the tile": (T.PROGRAM, Program(13, 0, 9, BIG).encode(), 0, Status.OUT_OF_RANGE),
    "another shape, same id": (T.PROGRAM, Program(11, 0, 1, BIG).encode(), 0, Status.OUT_OF_RANGE),
    "a weight of -128": (T.PROGRAM, Program(12, 0, 9, BIG).encode()[:-1] + b"\x80", 0, Status.BAD_VALUE),
    "weights cut short": (T.PROGRAM, Program(12, 0, 9, BIG).encode()[:-1], 0, Status.BAD_LENGTH),
    "reading beyond the end": (T.READBACK, Readback(6, 7).encode(), 0, Status.OUT_OF_RANGE),
    "too few trims": (T.SET_TRIM, bytes(20), 0, Status.BAD_LENGTH),
    "rate 0": (T.BAUD, U32(0).encode(), 0xFFFF, Status.OUT_OF_RANGE),
    "a rate that is too high": (T.BAUD, U32(2**31).encode(), 0xFFFF, Status.OUT_OF_RANGE),
    "beyond the buffer": (T.WRITE_BUFFER, WriteBuffer(60, WEIGHTS[0]).encode(), 0xFFFF, Status.OUT_OF_RANGE),
    "a patch beyond the buffer": (T.MVM_GATHER, MvmGather(54, (Loop(12, 1),), ()).encode(), 0, Status.OUT_OF_RANGE),
    "a patch before the buffer": (T.MVM_GATHER, MvmGather(5, (Loop(12, -1),), ()).encode(), 0, Status.OUT_OF_RANGE),
    "no row": (T.MVM, Mvm(INPUTS[:, :0]).encode(), 0, Status.OUT_OF_RANGE),
    "a row too many": (T.MVM, Mvm(INPUTS, first_row=1).encode(), 0, Status.OUT_OF_RANGE),
    "a row behind the matrix": (T.MVM, Mvm(INPUTS[:, :1], first_row=12).encode(), 0, Status.OUT_OF_RANGE),
    "a row far behind it": (T.MVM, Mvm(INPUTS[:, :2], first_row=65535).encode(), 0, Status.OUT_OF_RANGE),
    "a column too many": (T.MVM, Mvm(INPUTS, cols=7).encode(), 0, Status.OUT_OF_RANGE),
    "a column behind the matrix": (T.MVM, Mvm(INPUTS, first_col=6, cols=1).encode(), 0, Status.OUT_OF_RANGE),
    "all columns behind the last": (T.MVM, Mvm(INPUTS, first_col=6).encode(), 0, Status.OUT_OF_RANGE),
    "columns that wrap": (T.MVM, Mvm(INPUTS, first_col=2, cols=65535).encode(), 0, Status.OUT_OF_RANGE),
    "a patch of too many rows": (T.MVM_GATHER, MvmGather(0, (Loop(13, 1),), ()).encode(), 0, Status.OUT_OF_RANGE),
    "a patch of no row": (T.MVM_GATHER, MvmGather(0, (Loop(0, 1),), ()).encode(), 0, Status.OUT_OF_RANGE),
    "a patch on rows behind the matrix": (
        T.MVM_GATHER,
        MvmGather(0, (Loop(3, 1),), (), first_row=10).encode(),
        0,
        Status.OUT_OF_RANGE,
    ),
    "a patch for columns behind the matrix": (
        T.MVM_GATHER,
        MvmGather(0, (Loop(3, 1),), (), first_col=5, cols=2).encode(),
        0,
        Status.OUT_OF_RANGE,
    ),
    "a patch for all columns behind the last": (
        T.MVM_GATHER,
        MvmGather(0, (Loop(3, 1),), (), first_col=6).encode(),
        0,
        Status.OUT_OF_RANGE,
    ),
    "billions of patches": (
        T.MVM_GATHER,
        MvmGather(0, (Loop(12, 1),), (Loop(65535, 0),) * 3).encode(),
        0,
        Status.OUT_OF_RANGE,
    ),
    "a payload for READ": (T.READ, b"a", 0xFFFF, Status.BAD_LENGTH),
    "HELLO with a broken TLV": (T.HELLO, b"\x01\x05", 0xFFFF, Status.BAD_LENGTH),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_request_changes_nothing(case: str) -> None:
    kind, payload, tile, status = REFUSED[case]
    host = Host()
    host.program(WEIGHTS)
    assert host.ask(kind, payload, tile).status == status
    assert host.mvm(INPUTS).tolist() == exact(WEIGHTS, INPUTS)
    assert host.stats().programmed == WEIGHTS.size


@pytest.mark.parametrize(
    ("kind", "payload", "status"),
    [
        (T.MVM, Mvm(INPUTS // 16, InputFormat.INT4).encode(), Status.OUT_OF_RANGE),
        (T.MVM, Mvm(INPUTS, InputFormat.ZERO_SKIPPING).encode(), Status.OUT_OF_RANGE),
        (T.MVM, Mvm(INPUTS, output_format=OutputFormat.PACKED).encode(), Status.OUT_OF_RANGE),
        (T.WRITE_BUFFER, WriteBuffer(0, INPUTS[0]).encode(), Status.UNKNOWN_TYPE),
        (T.MVM_GATHER, MvmGather(0, (Loop(12, 1),), ()).encode(), Status.UNKNOWN_TYPE),
        (T.GET_TRIM, b"", Status.UNKNOWN_TYPE),
        (T.BAUD, U32(9600).encode(), Status.UNKNOWN_TYPE),
    ],
)
def test_a_board_refuses_what_it_does_not_announce(kind: int, payload: bytes, status: Status) -> None:
    host = Host(SMALL.model_copy(update={"capabilities": (), "output_bits": 8}))
    host.program(WEIGHTS)
    assert host.ask(kind, payload, tile=0).status == status


def test_a_repeated_request_is_answered_from_the_cache_and_not_carried_out_again() -> None:
    host = Host()
    first = encode_frame(host.request(T.PROGRAM, Program(12, 0, 1, WEIGHTS).encode(), tile=0))
    assert host.send(first) == host.send(first)
    assert host.stats().programmed == WEIGHTS.size
    assert host.stats().replayed == 1


def test_the_same_number_with_other_bytes_is_another_request() -> None:
    host = Host()
    host.program(WEIGHTS)
    first, second = (encode_frame(Frame(T.MVM, 99, 0, payload=Mvm(INPUTS[i : i + 1]).encode())) for i in (0, 1))
    assert host.send(first)[0].payload != host.send(second)[0].payload


def test_the_cache_holds_the_last_answers_only() -> None:
    host = Host()
    repeated = host.request(T.PROGRAM, Program(12, 0, 1, WEIGHTS).encode(), tile=0)
    host.send(encode_frame(repeated))
    for _ in range(SMALL.replay):
        host.ask(T.GET_TRIM, tile=0)
    host.send(encode_frame(repeated))
    assert host.stats().programmed == 2 * WEIGHTS.size


def test_requests_are_answered_in_their_order() -> None:
    host = Host()
    requests = [host.request(kind, b"") for kind in (T.ECHO, T.READ, 0x60, T.STATS)]
    answers = host.send(b"".join(map(encode_frame, requests)))
    assert [answer.sequence for answer in answers] == [request.sequence for request in requests]


def test_answers_of_an_echoing_line_are_not_answered() -> None:
    host = Host()
    assert host.send(encode_frame(Frame(T.ECHO | ANSWER, 1))) == []


def test_another_version_is_answered_at_most_once_a_second() -> None:
    host, other = Host(), encode_frame(Frame(T.ECHO, 77, version=9))
    (answer,) = host.send(other)
    assert (answer.type, answer.sequence, answer.status, answer.payload) == (T.HELLO | ANSWER, 77, Status.VERSION, b"")
    host.now_s = 0.9
    assert host.send(other) == []
    host.now_s = 1.1
    assert len(host.send(other)) == 1
    assert host.stats().other_version == 3


def test_a_board_of_another_version_says_so() -> None:
    board, reader = Board(SMALL.model_copy(update={"protocol_version": 2})), FrameReader(1000)
    reader.feed(board.start() + board.receive(encode_frame(Frame(T.HELLO, 5)), 0.0))
    boot, refusal = reader.take_other_versions()
    assert (boot.type, refusal.type, refusal.status, refusal.version) == (0xF1, 0x81, Status.VERSION, 2)


def test_reset_forgets_everything_and_boots() -> None:
    host = Host()
    host.program(WEIGHTS)
    answer, boot = host.send(encode_frame(host.request(T.RESET)))
    assert (answer.type, answer.status, boot.type) == (T.RESET | ANSWER, Status.OK, T.BOOT | ANSWER)
    assert Boot.decode(boot.payload).boot_id == 2
    assert host.ask(T.MVM, MVM, tile=0).status == Status.NOT_PROGRAMMED


def test_a_rate_is_kept_once_the_host_is_heard_and_given_up_otherwise() -> None:
    host = Host()
    host.ask(T.BAUD, U32(921600).encode())
    assert host.board.rate == 921600
    host.now_s = 0.5
    host.ask(T.HELLO)
    host.now_s = 5.0
    host.ask(T.BAUD, U32(3_000_000).encode())
    host.now_s = 5.9
    host.send(b"noise\0")
    assert host.board.rate == 3_000_000
    host.now_s = 6.1
    host.send(b"")
    assert host.board.rate == 921600


def test_counters_count() -> None:
    host = Host()
    host.program(WEIGHTS)
    host.mvm(INPUTS)
    host.send(b"noise\0\0\0" + encode_frame(Frame(T.ECHO, 1, version=2)))
    stats = host.stats()
    assert (stats.received, stats.dropped, stats.other_version) == (3, 1, 1)
    assert (stats.multiplied, stats.programmed, stats.sent) == (3, 72, 4)  # BOOT, two answers, and the refusal


def test_readings_follow_the_time() -> None:
    array = ArraySettings(temperature_amplitude_c=10.0, temperature_period_s=100.0)
    host = Host(SMALL.model_copy(update={"array": array}))
    host.now_s = 25.0
    assert Readings.decode(host.ask(T.READ).payload) == Readings(35.0, 3300, 25000)


def test_a_talkative_board_logs_its_start_and_refusals() -> None:
    host = Host(SMALL.model_copy(update={"log": True}))
    answer, log = host.send(encode_frame(host.request(0x55)))
    assert answer.status == Status.UNKNOWN_TYPE
    assert (log.type, log.sequence, Log.decode(log.payload).level) == (T.LOG | ANSWER, 0, 2)


@given(st.binary(max_size=200), st.integers(0, 255), st.binary(max_size=40))
def test_no_bytes_break_the_board(garbage: bytes, kind: int, payload: bytes) -> None:
    host = Host()
    host.program(WEIGHTS)
    host.send(garbage + b"\0")
    host.send(encode_frame(Frame(kind, 500, 0, payload=payload)))
    assert host.send(encode_frame(Frame(T.ECHO, 600, payload=b"still here")))[-1].payload == b"still here"


# noise


def noisy(**array: Any) -> Host:
    host = Host(BoardSettings(tiles=2, rows=128, cols=128, array=ArraySettings(**array)))
    for tile in range(2):
        for first in range(0, 128, 16):
            part = Program(128, first, 1, np.full((16, 128), 50, np.int8)).encode()
            host.ask(T.PROGRAM, part, tile)
    return host


ONES = np.ones((1, 128), np.int8)


def test_multiplicative_noise_has_its_mean_and_its_spread() -> None:
    host = noisy(noise="mul", eta0=0.1)
    sums = np.concatenate([host.mvm(ONES).ravel() for _ in range(20)]) / (128 * 50)
    # A cell's factor is N_T N_S: mean 0.1, and standard deviation 0.1 sqrt(1.04 * 1.01 - 1); a sum averages 128.
    spread = 0.1 * np.sqrt(1.04 * 1.01 - 1) / np.sqrt(128)
    assert sums.mean() == pytest.approx(1.1, abs=4 * spread / np.sqrt(128))
    assert sums.std() == pytest.approx(spread, rel=0.1)


def test_additive_noise_is_in_units_of_the_largest_code() -> None:
    host = noisy(noise="add", eta0=0.01, sigma_temporal=0.0, sigma_spatial=0.0)
    assert host.mvm(ONES).tolist() == [[round(128 * (50 + 1.27))] * 128]


def test_temporal_noise_is_redrawn_for_each_request_and_spatial_noise_is_not() -> None:
    both = noisy(noise="mul", eta0=0.1)
    assert both.mvm(ONES).tolist() != both.mvm(ONES).tolist()
    spatial = noisy(noise="mul", eta0=0.1, sigma_temporal=0.0)
    assert spatial.mvm(ONES).tolist() == spatial.mvm(ONES).tolist()
    assert spatial.mvm(ONES).tolist() != spatial.mvm(ONES, tile=1).tolist()


def test_spatial_errors_belong_to_the_cell_whatever_is_programmed() -> None:
    host = noisy(noise="mul", eta0=1.0, sigma_temporal=0.0, gain_spread=0.1, offset_spread=9.0)
    whole = host.mvm(np.eye(1, 128, dtype=np.int8) * 100)[0, :5]
    host.program(np.full((7, 5), 50, np.int8), id_=2)
    assert host.mvm(np.eye(1, 7, dtype=np.int8) * 100)[0].tolist() == whole.tolist()


def test_a_part_has_the_errors_of_its_cells_and_columns() -> None:
    host = noisy(noise="mul", eta0=1.0, sigma_temporal=0.0, gain_spread=0.1, offset_spread=9.0)
    padded = np.zeros((1, 128), np.int8)
    padded[:, 40:50] = 100
    part = Mvm(padded[:, 40:50], first_row=40, first_col=60, cols=30)
    answer = host.ask(T.MVM, part.encode(), tile=0)
    assert MvmResult.decode(answer.payload, 1, 30, OutputFormat.INT32, 0).outputs.tolist() == [
        host.mvm(padded)[0, 60:90].tolist()
    ]


@pytest.mark.parametrize(("granularity", "shared"), [("element", False), ("tile", True), ("device", True)])
def test_granularity_says_who_shares_a_draw(granularity: str, shared: bool) -> None:
    host = noisy(noise="mul", eta0=0.1, sigma_spatial=0.0, granularity=granularity)
    assert (len(set(host.mvm(ONES)[0].tolist())) == 1) == shared


def test_same_seed_same_board() -> None:
    errors: dict[str, Any] = {"noise": "mul", "eta0": 0.1, "gain_spread": 0.1, "stuck_cells": 0.01}
    first, same, other = (noisy(**errors, seed=seed).mvm(ONES).tolist() for seed in (3, 3, 4))
    assert first == same != other


def test_columns_have_their_own_gain_and_offset() -> None:
    host = noisy(gain_spread=0.1, offset_spread=100.0)
    offsets = host.mvm(0 * ONES)[0]
    gains = (host.mvm(ONES)[0] - offsets) / (128 * 50)
    assert offsets.std() == pytest.approx(100, rel=0.3)
    assert (gains.mean(), gains.std()) == (pytest.approx(1.0, abs=0.05), pytest.approx(0.1, rel=0.3))


def test_stuck_cells_show_in_readback_selftest_and_products() -> None:
    host = noisy(stuck_cells=0.01)
    read = [host.ask(T.READBACK, Readback(first, 16).encode(), tile=0).payload for first in range(0, 128, 16)]
    weights = np.concatenate([ReadbackResult.decode(payload, 16).weights for payload in read])
    stuck = weights[weights != 50]
    assert set(stuck.tolist()) == {-127, 0, 127}
    assert stuck.size == pytest.approx(164, rel=0.4)
    assert host.mvm(ONES)[0].tolist() == weights.sum(0).tolist()
    assert SelfTest.decode(host.ask(T.SELFTEST).payload) == SelfTest(2, (0, 1))
    assert SelfTest.decode(noisy().ask(T.SELFTEST).payload) == SelfTest(2)


def test_weights_fade_with_age_and_change_with_temperature() -> None:
    host = noisy(drift_exponent=0.05, gain_per_c=0.01, temperature_amplitude_c=10.0, temperature_period_s=4 * 999.0)
    host.now_s = 999.0  # a quarter of the period: 10 degrees above 25
    assert host.mvm(ONES)[0, 0] == round(128 * 50 * 1000**-0.05 * 1.1)


@pytest.mark.parametrize(
    "wrong",
    [{"max_payload": 400}, {"window": 9}, {"output_bits": 1}, {"rows": 0}, {"capabilities": ("flying",)}, {"tile": 3}],
)
def test_settings_that_no_board_can_have_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BoardSettings(**wrong)
