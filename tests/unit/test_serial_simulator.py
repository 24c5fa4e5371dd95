"""The virtual board at real ports, paced, and with faults."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimcal.errors import DeviceBusyError, StorageError, UsageError
from pimcal_serial.frames import Frame, FrameReader, MessageType, encode_frame, encoded_size
from pimcal_serial.messages import U32, BoardInfo, Boot
from pimcal_serial.simulator.faults import FaultyBoard, Unplugged, virtual_board
from pimcal_serial.simulator.pacing import PacedLine
from pimcal_serial.simulator.ports import PtyPort, TcpPort
from pimcal_serial.simulator.serve import Connection, connect, serving, simulate
from pimcal_serial.simulator.settings import BoardSettings, FaultSettings

T = MessageType
MAX_FRAME = encoded_size(2**20)
PLAIN = BoardSettings()
WAIT_S = 20.0


def with_faults(**faults: Any) -> BoardSettings:
    return BoardSettings(faults=FaultSettings(**faults))


def echo(number: int, size: int = 20) -> Frame:
    return Frame(T.ECHO, number, payload=number.to_bytes(2, "little") * (size // 2))


class FdHost:
    """A host on a file descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd, self.reader = fd, FrameReader(MAX_FRAME)

    def ask(self, *requests: Frame) -> list[Frame]:
        """Their answers; what comes unasked is left out."""
        outgoing, answers = b"\0" + b"".join(map(encode_frame, requests)), list[Frame]()
        end_s = time.monotonic() + WAIT_S
        while len(answers) < len(requests):
            assert time.monotonic() < end_s, "no answer"
            readable, writable, _ = select.select([self.fd], [self.fd] if outgoing else [], [], 1.0)
            if writable:
                outgoing = outgoing[os.write(self.fd, outgoing[:512]) :]
            if readable:
                answers += [frame for frame in self.reader.feed(os.read(self.fd, 4096)) if frame.sequence]
        return answers


@pytest.fixture
def terminal() -> Iterator[Callable[[str], FdHost]]:
    """Opens terminals as a host does; they are closed after the test."""
    fds: list[int] = []

    def open_it(path: str) -> FdHost:
        fds.append(os.open(path, os.O_RDWR | os.O_NOCTTY))
        tty.setraw(fds[-1])
        return FdHost(fds[-1])

    yield open_it
    for fd in fds:
        os.close(fd)


def test_a_board_answers_on_a_terminal_at_the_given_path(tmp_path: Path, terminal: Callable[[str], FdHost]) -> None:
    path = tmp_path / "board"
    with serving(PLAIN, PtyPort(path)) as server:
        assert server.port.address == str(path)
        (answer,) = terminal(str(path)).ask(Frame(T.HELLO, 1))
        assert BoardInfo.decode(answer.payload).serial_number == "SIM-0001"
        again = terminal(str(path))  # a host may leave and come back
        assert [frame.payload for frame in again.ask(echo(2), echo(3))] == [echo(2).payload, echo(3).payload]
    assert not path.is_symlink()


def test_a_terminal_carries_every_byte_as_it_is(tmp_path: Path, terminal: Callable[[str], FdHost]) -> None:
    every = Frame(T.ECHO, 1, payload=bytes(range(256)) * 16)
    with serving(PLAIN, PtyPort()) as server:
        assert terminal(server.port.address).ask(every, every, every)[0].payload == every.payload


def test_a_dead_boards_link_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    path, other = tmp_path / "board", tmp_path / "notes"
    path.symlink_to("/dev/pts/no-such")
    with serving(PLAIN, PtyPort(path)):
        assert path.exists()
    other.write_text("keep me")
    with pytest.raises(UsageError, match="exists"), serving(PLAIN, PtyPort(other)):
        pass
    assert other.read_text() == "keep me"
    with pytest.raises(StorageError, match="folder"), serving(PLAIN, PtyPort(tmp_path / "none" / "board")):
        pass


def tcp_host(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def test_hosts_come_one_after_the_other_over_tcp() -> None:
    port = TcpPort()
    with serving(PLAIN, port) as server:
        assert server.port.address == f"socket://127.0.0.1:{port.port}"
        for number in (1, 2, 3):
            with tcp_host(port.port) as host:
                assert FdHost(host.fileno()).ask(echo(number))[0].payload == echo(number).payload


def test_a_taken_tcp_port_is_reported() -> None:
    first = TcpPort()
    with (
        serving(PLAIN, first),
        pytest.raises(DeviceBusyError, match=str(first.port)),
        serving(PLAIN, TcpPort(first.port)),
    ):
        pass


def test_a_host_that_writes_much_before_it_reads_gets_every_answer() -> None:
    requests = [echo(number, 4000) for number in range(1, 200)]
    port = TcpPort()
    with serving(PLAIN, port), tcp_host(port.port) as host:
        line = b"".join(map(encode_frame, requests))
        sender = threading.Thread(target=host.sendall, args=(line,))
        sender.start()
        reader, answers = FrameReader(MAX_FRAME), list[Frame]()
        while len(answers) < len(requests):
            answers += [frame for frame in reader.feed(host.recv(1000)) if frame.sequence]
        sender.join()
    assert [answer.payload for answer in answers] == [request.payload for request in requests]


def first_boot(connection: Connection) -> int:
    (boot,) = FrameReader(MAX_FRAME).feed(connection.read(timeout_s=WAIT_S))
    return Boot.decode(boot.payload).boot_id


def test_a_board_within_the_process_boots_and_answers() -> None:
    with connect(PLAIN) as connection:
        first = first_boot(connection)
        connection.write(encode_frame(echo(5)))
        assert FrameReader(MAX_FRAME).feed(connection.read(timeout_s=WAIT_S))[0].payload == echo(5).payload
        with pytest.raises(TimeoutError):
            connection.read(timeout_s=0.01)
    with connect(PLAIN) as connection:
        assert first_boot(connection) != first


def test_an_unplugged_board_closes_the_line_and_comes_back_with_a_new_boot_id() -> None:
    port = TcpPort()
    with serving(with_faults(unplug_at=(2,), unplugged_s=0.05), port):
        with tcp_host(port.port) as host:
            (answer,) = FdHost(host.fileno()).ask(Frame(T.HELLO, 1))
            host.sendall(encode_frame(echo(2)))
            assert host.recv(100) == b""
        with reconnect(port.port) as host:
            (after,) = FdHost(host.fileno()).ask(Frame(T.HELLO, 3))
    ids = [BoardInfo.decode(frame.payload).boot_id for frame in (answer, after)]
    assert ids[1] == ids[0] + 1


def reconnect(port: int) -> socket.socket:
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        try:
            return tcp_host(port)
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise AssertionError("the board did not come back")


def test_an_unplugged_terminal_vanishes_and_comes_back(tmp_path: Path, terminal: Callable[[str], FdHost]) -> None:
    path = tmp_path / "board"
    with serving(with_faults(unplug_at=(1,), unplugged_s=0.2), PtyPort(path)):
        host = terminal(str(path))
        os.write(host.fd, encode_frame(echo(1)))
        end_s = time.monotonic() + WAIT_S
        while path.is_symlink() and time.monotonic() < end_s:
            time.sleep(0.005)
        with pytest.raises(OSError, match="rror"):
            os.write(host.fd, b"\0")
        while not path.exists():
            assert time.monotonic() < end_s
            time.sleep(0.005)
        assert terminal(str(path)).ask(echo(2))[0].payload == echo(2).payload


PROGRAM = """
import sys
from pathlib import Path
from pimcal_serial.simulator.serve import simulate
from pimcal_serial.simulator.settings import BoardSettings

def tell(address):
    sys.stdout.write(address)
    sys.stdout.flush()

simulate(BoardSettings(), pty_path=Path(sys.argv[1]), on_ready=tell)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_simulation_cleanly(tmp_path: Path, number: int, terminal: Callable[[str], FdHost]) -> None:
    path = tmp_path / "board"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.read(len(str(path))) == str(path)
        assert terminal(str(path)).ask(echo(1))
        process.send_signal(number)
        assert process.wait(WAIT_S) == 0
    assert not path.is_symlink()


def test_one_port_only() -> None:
    with pytest.raises(UsageError, match="not both"):
        simulate(PLAIN, pty_path=Path("board"), tcp_port=0)


# pace


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1), st.integers(300, 10**7), st.randoms())
def test_a_paced_line_gives_every_byte_in_its_time(pieces: list[bytes], baud: int, random: Any) -> None:
    line, now_s, taken, arrived = PacedLine(), 0.0, b"", list[float]()
    for piece in pieces:
        line.put(piece, now_s, baud)
        now_s += random.random() * 100 / baud
        data = line.take(now_s)
        taken, arrived = taken + data, arrived + [now_s] * len(data)
    while len(line):
        assert line.due_s() < now_s + 60 * 100 * 10 / baud
        now_s = max(now_s, line.due_s())
        data = line.take(now_s)
        taken, arrived = taken + data, arrived + [now_s] * len(data)
    assert taken == b"".join(pieces)
    assert all(at >= (n + 1) * 10 / baud * 0.999 - 1e-2 / baud for n, at in enumerate(arrived))
    assert line.due_s() == float("inf")


def test_a_busy_line_loses_no_time() -> None:
    line = PacedLine()
    line.put(bytes(1000), 5.0, 10_000)
    taken = [len(line.take(5.0 + 0.0137 * n)) for n in range(1, 74)]
    assert sum(taken) == 1000
    assert sum(taken[:40]) == pytest.approx(40 * 13.7, abs=1)


def test_a_served_line_is_paced_both_ways() -> None:
    """2 x 2,000 bytes take 0.4 s at 100 kbit/s; a slow machine takes longer, none is faster."""
    with connect(PLAIN, baud=100_000) as connection:
        line, start_s = encode_frame(echo(1, 1980)), time.monotonic()
        connection.write(line)
        reader, answers = FrameReader(MAX_FRAME), list[Frame]()
        while not any(answer.sequence for answer in answers):
            answers += reader.feed(connection.read(timeout_s=WAIT_S))
        assert time.monotonic() - start_s >= 2 * len(line) * 10 / 100_000 * 0.99


def test_the_line_follows_the_boards_rate() -> None:
    with connect(PLAIN, baud=2400) as connection:
        host = FdHost(connection.fileno())
        host.ask(Frame(T.BAUD, 1, payload=U32(12_000_000).encode()))
        start_s = time.monotonic()
        host.ask(*(echo(number, 4000) for number in range(2, 12)))
        assert time.monotonic() - start_s < 40_000 * 10 / 2400  # the old rate's time


# faults, in simulated time


class Bad:
    """A faulty board and what it sent."""

    def __init__(self, **faults: Any) -> None:
        self.board = virtual_board(with_faults(**faults))
        self.reader = FrameReader(MAX_FRAME)
        self.board.start()

    def send(self, *requests: Frame, now_s: float = 0.0) -> list[Frame]:
        found: list[Frame] = []
        for request in requests:
            found += self.reader.feed(self.board.receive(b"\0" + encode_frame(request), now_s))
        return found

    def sequences(self, count: int = 200) -> list[int]:
        return [frame.sequence for frame in self.send(*(echo(number) for number in range(1, count + 1)))]


def test_a_board_without_faults_is_a_plain_board() -> None:
    assert not isinstance(virtual_board(PLAIN), FaultyBoard)
    assert Bad(stall_s=1.0).sequences() == list(range(1, 201))


@pytest.mark.parametrize("fault", ["lost", "corrupted", "truncated"])
def test_damaged_frames_never_arrive_and_the_others_do(fault: str) -> None:
    bad = Bad(**{fault: 0.2})
    found = bad.sequences()
    assert 60 < len(found) < 160  # 0.8^2 of 200; a frame cut short takes the answer behind it along
    assert found == sorted(set(found))
    assert fault == "lost" or bad.reader.dropped > 10


def test_duplicated_requests_are_answered_as_often() -> None:
    found = Bad(duplicated=0.2).sequences()
    assert set(found) == set(range(1, 201))
    assert found == sorted(found)
    assert 250 < len(found) < 330


def test_reordered_frames_all_arrive_but_for_the_last_held() -> None:
    found = Bad(reordered=0.2).sequences()
    assert found != sorted(found)
    assert len(found) == len(set(found)) >= 198


def test_byte_errors_come_at_their_rate() -> None:
    lost = 2000 - len(Bad(byte_errors=1e-3).sequences(2000))
    size = len(encode_frame(echo(1)))
    assert lost == pytest.approx(2000 * (1 - (1 - 1e-3) ** (2 * size)), rel=0.5)


def test_a_stalled_board_answers_later_and_in_order() -> None:
    bad = Bad(stall_at=(2,), stall_s=0.5)
    assert [frame.sequence for frame in bad.send(echo(1), echo(2), echo(3))] == [1]
    assert bad.send(echo(4), now_s=0.4) == []
    assert [frame.sequence for frame in bad.send(echo(5), now_s=0.6)] == [2, 3, 4, 5]


def test_a_reset_comes_instead_of_the_answer() -> None:
    bad = Bad(reset_at=(2,))
    assert [frame.type for frame in bad.send(echo(1), echo(2), echo(3))] == [0x82, 0xF1, 0x82]
    (hello,) = bad.send(Frame(T.HELLO, 4))
    assert BoardInfo.decode(hello.payload).boot_id == 2


def test_unplugging_is_told_with_its_time() -> None:
    bad = Bad(unplug_at=(2,), unplugged_s=3.0)
    bad.send(echo(1))
    with pytest.raises(Unplugged) as gone:
        bad.send(echo(2))
    assert gone.value.off_s == 3.0
    bad.board.start(3.0)
    assert [frame.sequence for frame in bad.send(echo(3), now_s=3.0)] == [3]


def test_the_same_seed_gives_the_same_faults() -> None:
    runs = [Bad(lost=0.1, corrupted=0.1, byte_errors=1e-4, seed=seed).sequences() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
