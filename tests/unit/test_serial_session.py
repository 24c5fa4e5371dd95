"""The session: windows, repetition, restarts and lost links, on a virtual board behind a link that fails on demand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimcal.errors import DeviceUnavailableError
from pimcal_serial.driver import Driver
from pimcal_serial.frames import ANSWER, Frame, FrameReader, MessageType, Status, encode_frame
from pimcal_serial.messages import BoardInfo, Stats
from pimcal_serial.requests import BoardRestartedError, RefusedError, Request
from pimcal_serial.session import Session, Timing
from pimcal_serial.simulator.board import Board
from pimcal_serial.simulator.settings import BoardSettings
from pimcal_serial.transport import LinkError

Mangle = Callable[[bytes], list[bytes]]


def untouched(frame: bytes) -> list[bytes]:
    return [frame]


@dataclass
class Link:
    """The virtual board, and a line that the test may spoil. Time passes only while the host waits."""

    settings: BoardSettings = field(default_factory=lambda: BoardSettings(tiles=2, rows=16, cols=8, max_payload=128))
    to_board: Mangle = untouched
    to_host: Mangle = untouched
    now_s: float = 0.0
    away_s: float = 1e9
    unplugged_s: float | None = None
    opened: int = 0
    sent: list[Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.board = Board(self.settings)
        self.pending = self.board.start()
        self._partial = b""

    # what a session takes

    def connect(self) -> Link:
        if self.unplugged_s is not None and self.now_s < self.unplugged_s + self.away_s:
            raise DeviceUnavailableError("there is no such port")
        self.unplugged_s = None
        self.opened += 1
        return self

    def exchange(self, outgoing: bytes | bytearray, timeout_s: float) -> tuple[int, bytes]:
        if self.unplugged_s is not None:
            raise LinkError("unplugged")
        *frames, self._partial = (self._partial + bytes(outgoing)).split(b"\0")
        received, self.pending = self.pending, b""
        for frame in filter(None, frames):
            received += self._answer(frame + b"\0")
        if not outgoing and not received:
            self.now_s += max(timeout_s, 1e-6)
        return len(outgoing), received

    def _answer(self, frame: bytes) -> bytes:
        self.sent += FrameReader(4096).feed(frame)
        arrived = b"".join(self.to_board(frame))
        answers = self.board.receive(arrived, self.now_s) if arrived else b""
        return b"".join(part for answer in _frames(answers) for part in self.to_host(answer))

    def set_baud(self, baud: int) -> None: ...

    def close(self) -> None: ...

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    # what a test takes

    def session(self, timing: Timing | None = None) -> Session:
        return Session(
            self.connect, timing or Timing(), clock=self.clock, sleep=self.sleep, random=random.Random(self.opened)
        )


def _frames(data: bytes) -> list[bytes]:
    return [piece + b"\0" for piece in data.split(b"\0") if piece]


def echoes(count: int) -> list[Request]:
    return [Request(MessageType.ECHO, b"%d" % i, answer_bytes=4) for i in range(count)]


def expected(count: int) -> list[bytes]:
    return [b"%d" % i for i in range(count)]


def drop(*numbers: int) -> Mangle:
    """Loses the frames with these numbers, counted from 0."""
    counted = iter(range(10**9))
    return lambda frame: [] if next(counted) in numbers else [frame]


def spoiled(rng: random.Random, share: float) -> Mangle:
    """Loses, corrupts, cuts and doubles frames, and puts garbage before them."""

    def mangle(frame: bytes) -> list[bytes]:
        if rng.random() > share:
            return [frame]
        at = rng.randrange(len(frame))
        return rng.choice(
            [
                [],
                [frame, frame],
                [frame[:at] + bytes([frame[at] ^ 0x55]) + frame[at + 1 :]],
                [frame[:at]],
                [rng.randbytes(at), b"\0", frame],
            ]
        )

    return mangle


def weights_and_inputs(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(-127, 128, (16, 8), np.int8), rng.integers(-127, 128, (count, 16), np.int8)


def product(weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    return inputs.astype(np.int64) @ weights.astype(np.int64)


# --- the window


def test_answers_come_in_the_order_of_the_requests() -> None:
    assert list(Link().session().request_many(echoes(100))) == expected(100)


def test_no_requests_give_no_answers() -> None:
    assert list(Link().session().request_many([])) == []


def test_requests_are_taken_only_as_the_window_has_room() -> None:
    link, taken = Link(), []

    def requests() -> Iterator[Request]:
        for request in echoes(20):
            taken.append(request)
            yield request

    answers = link.session().request_many(requests())
    next(answers)
    assert len(taken) <= 2 * link.settings.window


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 6))
def test_a_repeated_request_always_meets_its_answer_in_the_replay_cache(seed: int, window: int, more: int) -> None:
    link = Link(BoardSettings(tiles=1, rows=16, cols=8, max_payload=96, window=window, replay=window + more))
    driver = Driver(link.session())
    weights, inputs = weights_and_inputs()
    driver.program(0, weights)
    link.to_board, link.to_host = (spoiled(random.Random(seed + i), 0.2) for i in range(2))
    driver.multiply(0, inputs)
    link.to_board = link.to_host = untouched
    stats = Stats.decode(driver.session.request(Request(MessageType.STATS)))
    assert stats.multiplied == len(inputs)


def test_no_more_requests_than_the_window_are_under_way() -> None:
    link = Link(BoardSettings(window=3, replay=8))
    session, unanswered, most = link.session(), set[int](), 0

    def to_board(frame: bytes) -> list[bytes]:
        nonlocal most
        unanswered.add(link.sent[-1].sequence)
        most = max(most, len(unanswered))
        return [frame]

    def to_host(answer: bytes) -> list[bytes]:
        (frame,) = FrameReader(4096).feed(answer)
        unanswered.discard(frame.sequence)
        return [answer]

    link.to_board, link.to_host = to_board, to_host
    assert list(session.request_many(echoes(20))) == expected(20)
    assert 1 <= most <= 3


# --- repetition


@given(st.integers(0, 2**32), st.floats(0, 0.3))
def test_a_bad_line_changes_no_answer_and_repeats_no_product(seed: int, share: float) -> None:
    link = Link()
    driver = Driver(link.session())
    link.to_board, link.to_host = (spoiled(random.Random(seed + i), share) for i in range(2))
    weights, inputs = weights_and_inputs()
    driver.program(1, weights)
    assert np.array_equal(driver.multiply(1, inputs), product(weights, inputs))
    link.to_board = link.to_host = untouched
    stats = Stats.decode(driver.session.request(Request(MessageType.STATS)))
    assert stats.multiplied == len(inputs)


@pytest.mark.parametrize("side", ["to_board", "to_host"])
def test_a_frame_lost_in_a_stream_is_repeated_at_once(side: str) -> None:
    link = Link()
    session = link.session()
    setattr(link, side, drop(7))
    before_s = link.now_s
    assert list(session.request_many(echoes(40))) == expected(40)
    assert session.counters.repeats == 1
    assert link.now_s == before_s


@pytest.mark.parametrize("side", ["to_board", "to_host"])
def test_a_frame_lost_at_the_end_is_repeated_after_a_time_out(side: str) -> None:
    link = Link()
    session = link.session()
    setattr(link, side, drop(39))
    assert list(session.request_many(echoes(40))) == expected(40)
    assert session.counters.repeats == 1


def test_time_outs_grow_with_the_size_and_shrink_with_the_rate() -> None:
    waits = []
    for baud, size in ((9600, 8), (9600, 120), (115200, 120)):
        link = Link()
        session = link.session(Timing(baud))
        link.to_host = drop(0)
        before_s = link.now_s
        session.request(Request(MessageType.ECHO, bytes(size), answer_bytes=size))
        waits.append(link.now_s - before_s)
    assert waits[0] < waits[1] > waits[2]
    assert waits[1] - waits[2] == pytest.approx(2 * 137 * 10 * (1 / 9600 - 1 / 115200), rel=0.1)


def test_a_busy_board_is_asked_again() -> None:
    link = Link()
    session = link.session()
    refused = iter([True, True, False])

    def busy(answer: bytes) -> list[bytes]:
        (frame,) = FrameReader(4096).feed(answer)
        if frame.payload != b"3" or not next(refused):
            return [answer]
        return [encode_frame(Frame(frame.type, frame.sequence, frame.tile, Status.BUSY))]

    link.to_host = busy
    assert list(session.request_many(echoes(8))) == expected(8)
    asked = [frame.sequence for frame in link.sent if frame.payload == b"3"]
    assert len(asked) == 3
    assert len(set(asked)) == 1  # so that what an earlier copy has done is not done twice


def test_a_refusal_says_what_and_where() -> None:
    session = Link().session()
    with pytest.raises(RefusedError, match=r"READBACK on tile 1: NOT_PROGRAMMED .*program it first"):
        session.request(Request(MessageType.READBACK, bytes(4), tile=1))
    assert session.request(echoes(1)[0]) == b"0"


def test_a_hardware_fault_is_told_in_the_boards_words() -> None:
    link = Link()
    session = link.session()
    link.to_host = lambda _: [
        encode_frame(Frame(MessageType.READ | ANSWER, link.sent[-1].sequence, status=Status.FAULT, payload=b"hot"))
    ]
    with pytest.raises(DeviceUnavailableError, match="hardware fault in READ: hot"):
        session.request(Request(MessageType.READ))


def test_an_interrupted_run_leaves_the_line_usable() -> None:
    link = Link()
    session = link.session()
    answers = session.request_many(echoes(30))
    assert next(answers) == b"0"
    link.exchange(b"half a frame", 0.0)
    assert list(session.request_many(echoes(10))) == expected(10)
    session.close()


# --- the first contact


def test_silence_is_told_as_silence() -> None:
    link = Link(to_board=lambda _: [])
    link.pending = b""
    with pytest.raises(DeviceUnavailableError, match="silent"):
        link.session()
    assert link.now_s >= Timing().connect_s


def test_a_peer_that_sends_something_else_is_no_board() -> None:
    link = Link(to_host=lambda _: [b"login: "])
    link.pending = b""
    with pytest.raises(DeviceUnavailableError, match="not a PIM board, or has another baud rate"):
        link.session()


def test_a_peer_that_only_sends_frames_is_told_apart() -> None:
    with pytest.raises(DeviceUnavailableError, match="sends frames but does not answer HELLO"):
        Link(to_board=lambda _: []).session()


def test_another_version_is_named() -> None:
    with pytest.raises(DeviceUnavailableError, match=r"speaks version 3 .* this is version 1"):
        Link(BoardSettings(protocol_version=3)).session()


def test_a_board_that_needs_time_to_start_is_waited_for() -> None:
    link = Link()
    link.to_board = lambda frame: [frame] if link.now_s > 1.5 else []
    assert link.session().info.serial_number == "SIM-0001"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"tiles": 0}, "tiles is 0, it must be 1 to 65535"),
        ({"rows": 70_000, "max_payload": 80_000}, "rows is 70000"),
        ({"weight_bits": 9}, "weight_bits is 9, it must be 2 to 8"),
        ({"input_bits": 1}, "input_bits is 1"),
        ({"output_bits": 1}, "output_bits is 1, it must be 2 to 24"),
        ({"output_bits": 33}, "output_bits is 33"),
        ({"tiles": 60_000}, "max_payload is .* it must be 120004 to"),
        ({"replay": 1}, "window is .* it must be 1 to 1"),
        ({"replay": 10**9}, "replay is 1000000000"),
    ],
)
def test_an_announcement_that_makes_no_sense_is_refused(wrong: dict[str, int], told: str) -> None:
    sensible = {"tiles": 1, "rows": 8, "cols": 8, "weight_bits": 8, "input_bits": 8, "max_payload": 128}
    hello = BoardInfo(**{**sensible, "window": 2, "replay": 4, **wrong})  # type: ignore[arg-type]
    link = Link()
    link.to_host = lambda _: [
        encode_frame(Frame(MessageType.HELLO | ANSWER, link.sent[-1].sequence, payload=hello.encode()))
    ]
    with pytest.raises(DeviceUnavailableError, match=told):
        link.session()


# --- losing the board


class Unplugged:
    """A mangle that pulls the plug at one frame."""

    def __init__(self, link: Link, at: int) -> None:
        self.link, self.left = link, at

    def __call__(self, frame: bytes) -> list[bytes]:
        self.left -= 1
        if self.left == 0:
            self.link.unplugged_s = self.link.now_s
        return [frame]


@pytest.mark.parametrize("at", [1, 5, 20])
def test_a_board_that_comes_back_is_opened_again(at: int) -> None:
    link = Link(away_s=2.0)
    session = link.session()
    link.to_board = Unplugged(link, at)
    assert list(session.request_many(echoes(30))) == expected(30)
    assert session.counters.reopened == 1


def test_a_board_that_stays_away_is_lost() -> None:
    link = Link()
    session = link.session()
    link.to_board = Unplugged(link, 5)
    with pytest.raises(DeviceUnavailableError, match=r"device lost: .*no such port.* start again"):
        list(session.request_many(echoes(30)))
    assert link.now_s <= Timing().reconnect_s + 1


def test_a_board_that_falls_silent_is_lost() -> None:
    link = Link()
    session = link.session()
    link.to_host = lambda _: []
    with pytest.raises(DeviceUnavailableError, match=r"device lost: .*silent"):
        session.request(echoes(1)[0])


def test_another_board_in_its_place_is_refused() -> None:
    link, other = Link(), Link(BoardSettings(serial_number="SIM-0002"))
    session = link.session()
    session._connect = other.connect
    link.unplugged_s = 0.0
    with pytest.raises(DeviceUnavailableError, match="is now SIM-0002, it was SIM-0001"):
        session.request(echoes(1)[0])


# --- restarts


class Restarts:
    """A mangle that restarts the board before the frames with these numbers; its BOOT is lost or not."""

    def __init__(self, link: Link, numbers: set[int], told: bool) -> None:
        self.link, self.numbers, self.told, self.count = link, numbers, told, 0

    def __call__(self, frame: bytes) -> list[bytes]:
        self.count += 1
        if self.count in self.numbers:
            boot = self.link.board.start(self.link.now_s)
            self.link.pending += boot if self.told else b""
        return [frame]


@pytest.mark.parametrize("told", [True, False])
def test_a_restart_is_noticed(told: bool) -> None:
    link = Link()
    session = link.session()
    link.to_board = Restarts(link, {2}, told)
    with pytest.raises(BoardRestartedError):
        list(session.request_many([Request(MessageType.READBACK, bytes(4), tile=0)] * 9 if not told else echoes(9)))


@given(st.sets(st.integers(1, 30), max_size=4), st.booleans())
def test_after_restarts_the_weights_are_programmed_again_and_nothing_is_missing(at: set[int], told: bool) -> None:
    link = Link()
    driver = Driver(link.session())
    link.to_board = Restarts(link, at, told)
    weights, inputs = weights_and_inputs()
    driver.program(0, weights)
    driver.program(1, weights[:5])
    assert np.array_equal(driver.multiply(0, inputs), product(weights, inputs))
    assert np.array_equal(driver.multiply(1, inputs[:, :5]), product(weights[:5], inputs[:, :5]))


def test_a_board_that_restarts_again_and_again_is_given_up() -> None:
    link = Link()
    driver = Driver(link.session())
    weights, inputs = weights_and_inputs()
    driver.program(0, weights)
    link.to_board = Restarts(link, set(range(1, 1000)), told=True)
    with pytest.raises(DeviceUnavailableError, match="restarts again and again"):
        driver.multiply(0, inputs)


def test_weights_of_an_earlier_program_on_the_board_do_not_mix_with_new_ones() -> None:
    link = Link()
    weights, _ = weights_and_inputs()
    for shape in ((16, 8), (9, 8), (9, 8), (16, 3)):
        for _ in range(2):
            driver = Driver(link.session())
            driver.program(0, weights[: shape[0], : shape[1]])
            assert np.array_equal(driver.readback(0), weights[: shape[0], : shape[1]])
