"""Ports as pyserial opens them: remote ones by RFC 2217, those named by USB serial number, rates that change."""

import os
import select
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import serial
import serial.rfc2217
from serial.tools.list_ports_common import ListPortInfo

from pimcal.errors import DeviceUnavailableError
from pimcal_serial.connection import Connection
from pimcal_serial.driver import Driver
from pimcal_serial.frames import MessageType
from pimcal_serial.requests import RefusedError, Request
from pimcal_serial.session import Session, Timing
from pimcal_serial.settings import SerialSettings
from pimcal_serial.simulator.ports import PtyPort
from pimcal_serial.simulator.serve import serving
from pimcal_serial.simulator.settings import BoardSettings
from pimcal_serial.transport import FileTransport, LinkError, open_port, resolve_port

# pyserial 3.5 starts its reader with methods that Python 3.10 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:set(Daemon|Name):DeprecationWarning")

BOARD = BoardSettings(tiles=2, rows=64, cols=48, serial_number="PIM-0001", max_baud=2_000_000)
START_BAUD = 115200


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


class Line(serial.Serial):
    """A pseudo-terminal at the server's end: it has no modem lines, and no rates above `fastest`."""

    cts = dsr = ri = cd = False
    fastest = 1_000_000

    def _update_dtr_state(self):
        pass

    def _update_rts_state(self):
        pass

    def _reconfigure_port(self, *args, **kwargs):
        if self._baudrate > self.fastest:
            raise ValueError(f"no rate {self._baudrate}")
        super()._reconfigure_port(*args, **kwargs)


class RemotePort:
    """pyserial's RFC 2217 server for one host at a time, in a thread of its own.

    `cut(after_bytes, off_s)`: the host's connection and the server vanish when so many bytes have gone to the board.
    """

    def __init__(self, path):
        self._path, self._cut_after, self._off_s, self._passed = path, None, 0.0, 0
        self._stopped, self._stop = os.pipe()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.address = f"rfc2217://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, name="rfc2217")

    def cut(self, after_bytes, off_s):
        self._cut_after, self._off_s = self._passed + after_bytes, off_s

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        os.write(self._stop, b"x")
        self._thread.join()
        for descriptor in (self._stopped, self._stop):
            os.close(descriptor)

    def _run(self):
        while self._serve():
            self._listener = socket.create_server(("127.0.0.1", self.port))

    def _serve(self):
        """Until the server is stopped (False) or is to begin anew (True)."""
        with self._listener:
            while True:
                ready, _, _ = select.select([self._listener, self._stopped], [], [])
                if self._stopped in ready:
                    return False
                host, _ = self._listener.accept()
                with host, Line(self._path, timeout=0) as line:
                    host.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    cut = self._carry(host, line)
                    if cut:  # nobody may come back before the server has gone
                        self._listener.close()
                        break
        return not select.select([self._stopped], [], [], self._off_s)[0]

    def _carry(self, host, line):
        """Until the host leaves; whether it was cut off."""
        manager = serial.rfc2217.PortManager(line, SimpleNamespace(write=host.sendall))
        while True:
            ready, _, _ = select.select([host, line, self._stopped], [], [])
            if self._stopped in ready:
                return False
            try:
                if line in ready:
                    host.sendall(b"".join(manager.escape(line.read(65536))))
                if host in ready:
                    received = host.recv(65536)
                    if not received:
                        return False
                    data = b"".join(manager.filter(received))
                    self._passed += line.write(data)
            except OSError:
                return False
            if self._cut_after is not None and self._passed >= self._cut_after:
                self._cut_after = None
                return True


@pytest.fixture
def board():
    """A virtual board on a line of 115200 bit/s; a host with another rate reads and sends garbage."""
    with serving(BOARD, PtyPort(), START_BAUD) as server:
        yield server.port


@pytest.fixture
def fast_board():
    with serving(BOARD, PtyPort()) as server:
        yield server.port


@pytest.fixture
def remote(fast_board):
    with RemotePort(fast_board.address) as server:
        yield server


def matrices(vectors=400):
    rng = np.random.default_rng(0)
    return tuple(rng.integers(-127, 128, shape).astype(np.int8) for shape in ((64, 48), (vectors, 64)))


def echo(session, data):
    return session.request(Request(MessageType.ECHO, data, answer_bytes=len(data)))


# --- RFC 2217


def test_a_remote_board_answers_every_command(pimcal_run, remote):
    weights, inputs = matrices()
    np.save("w.npy", weights)
    np.save("x.npy", inputs)
    assert pimcal_run("board", "info", "--port", remote.address, "--json").json["serial_number"] == "PIM-0001"
    done = pimcal_run(
        "board", "mvm", "--port", remote.address, "--weights", "w.npy", "--inputs", "x.npy", "--out", "y.npy"
    )
    assert done.code == 0, done.err
    np.testing.assert_array_equal(np.load("y.npy"), inputs.astype(int) @ weights)


def test_bytes_that_telnet_gives_a_meaning_arrive_as_they_are(remote):
    with Connection(SerialSettings(port=remote.address)) as connection:
        for data in (bytes(range(256)) * 4, b"\xff" * 1000, b"\xff\xfa\x2c\xff\xf0"):
            assert echo(connection.session, data) == data
        assert connection.session.counters.repeats == 0


def test_a_server_that_goes_away_in_the_middle_is_connected_again(remote):
    weights, inputs = matrices()
    with Connection(SerialSettings(port=remote.address)) as connection:
        driver = Driver(connection.session)
        driver.program(0, weights)
        remote.cut(after_bytes=5000, off_s=0.3)
        products = driver.multiply(0, inputs)
        assert connection.session.counters.reopened >= 1
        assert connection.session.counters.restarts == 0
    np.testing.assert_array_equal(products, inputs.astype(int) @ weights)


def test_a_server_that_stays_away_is_a_lost_device(pimcal_run, remote):
    weights, inputs = matrices()
    with Connection(SerialSettings(port=remote.address, reconnect_s=0.5)) as connection:
        driver = Driver(connection.session)
        driver.program(0, weights)
        remote.cut(after_bytes=5000, off_s=100.0)
        with pytest.raises(DeviceUnavailableError, match=r"^device lost: the board on rfc2217://.*cannot open"):
            driver.multiply(0, inputs)


def test_a_server_that_is_no_rfc_2217_server_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"rfc2217://127.0.0.1:{server.getsockname()[1]}?timeout=0.2"
        with pytest.raises(DeviceUnavailableError, match="does not seem to support RFC2217"):
            open_port(address, START_BAUD, 0.1)


def test_nothing_to_read_is_waited_for_no_longer_than_asked(remote):
    transport = open_port(remote.address, START_BAUD, 0.1)
    time.sleep(0.1)
    transport.exchange(b"", 0.0)  # what the board has announced
    assert transport.exchange(b"", 0.0) == (0, b"")
    assert transport.exchange(b"", 0.05) == (0, b"")
    transport.close()


# --- rates


def session_on(port, baud=START_BAUD):
    return Session(lambda: open_port(port, baud, 0.25), Timing(START_BAUD, connect_s=5.0), name="the board")


def test_a_host_with_another_rate_gets_no_answer(board):
    session_on(board.address).close()  # takes what the board announced before any host had set a rate
    with pytest.raises(DeviceUnavailableError, match="check its power, the cable, and the baud rate"):
        Session(lambda: open_port(board.address, 9600, 0.25), Timing(9600, connect_s=0.5))


@pytest.mark.parametrize("rate", [921600, 1_000_000, 123_456], ids=["usual", "round", "odd"])
def test_both_sides_change_to_another_rate(board, rate):
    session = session_on(board.address)
    session.set_baud(rate)
    assert board.rate == rate
    assert echo(session, b"at the new rate" * 20) == b"at the new rate" * 20
    assert (session.counters.reopened, session.counters.restarts) == (0, 0)
    session.close()


def test_a_remote_line_changes_its_rate(board):
    with RemotePort(board.address) as remote:
        session = session_on(remote.address)
        session.set_baud(460800)
        assert board.rate == 460800
        assert echo(session, b"at the new rate") == b"at the new rate"
        session.close()


def test_a_rate_that_the_board_does_not_have_is_refused(board):
    session = session_on(board.address)
    with pytest.raises(RefusedError, match="BAUD: OUT_OF_RANGE"):
        session.set_baud(4_000_000)
    assert echo(session, b"at the old rate") == b"at the old rate"
    session.close()


def test_a_rate_that_the_port_does_not_have_is_told(board):
    with RemotePort(board.address) as remote:
        transport = open_port(remote.address, START_BAUD, 0.25)
        with pytest.raises(LinkError, match="cannot do 2000000 bit/s"):
            transport.set_baud(2_000_000)
        transport.close()


def test_a_board_whose_host_does_not_follow_goes_back_to_the_old_rate(board):
    session = session_on(board.address)
    session.request(Request(MessageType.BAUD, (921600).to_bytes(4, "little")))
    time.sleep(1.1)
    assert echo(session, b"at the old rate") == b"at the old rate"
    assert session.counters.restarts == 0
    session.close()


def test_a_profiles_fast_rate_is_used_while_it_is_open(board: PtyPort) -> None:
    settings = SerialSettings(port=board.address, baud=START_BAUD, fast_baud=921600)
    with Connection(settings) as connection:
        assert (board.rate, connection.session.baud) == (921600, 921600)
        assert echo(connection.session, b"fast") == b"fast"
    assert board.rate == START_BAUD


def test_a_fast_rate_that_the_board_does_not_have_is_done_without(board: PtyPort) -> None:
    with Connection(SerialSettings(port=board.address, baud=START_BAUD, fast_baud=3_000_000)) as connection:
        assert echo(connection.session, b"slow") == b"slow"
        assert connection.session.baud == START_BAUD


def test_a_board_that_a_killed_run_left_at_the_fast_rate_is_found(board: PtyPort) -> None:
    killed = session_on(board.address)
    killed.set_baud(921600)
    killed._transport.close()  # without a word to the board
    with Connection(SerialSettings(port=board.address, baud=START_BAUD, fast_baud=921600, connect_s=0.5)) as connection:
        assert echo(connection.session, b"found") == b"found"
    assert board.rate == START_BAUD


def test_a_lost_link_is_found_again_at_the_rate_that_the_board_still_has(board: PtyPort) -> None:
    session = session_on(board.address)
    session.set_baud(921600)
    session._transport.close()
    assert echo(session, b"at the new rate") == b"at the new rate"
    assert (board.rate, session.counters.reopened) == (921600, 1)
    session.close()


def test_a_rate_at_which_nothing_arrives_is_given_up_by_both_sides(board):
    class Inexact(FileTransport):
        """An adapter that takes a rate and makes another one of it."""

        def set_baud(self, baud):
            super().set_baud(baud - 50_000)

    def connect():
        return Inexact(serial.Serial(board.address, START_BAUD))

    session = Session(connect, Timing(START_BAUD, connect_s=5.0), name="the board")
    with pytest.raises(DeviceUnavailableError, match=r"cannot be reached at 921600 bit/s .* old rate"):
        session.set_baud(921600)
    assert echo(session, b"at the old rate") == b"at the old rate"
    assert (board.rate, session.counters.reopened) == (START_BAUD, 1)
    session.close()


# --- names and modes of ports


@pytest.fixture
def plugged_in(fast_board, monkeypatch):
    """What the system lists; no test can plug in a USB adapter."""
    entries = [
        port_entry(fast_board.address, "PIM-0001"),
        port_entry("/dev/ttyUSB7", "OTHER"),
        port_entry("/dev/ttyS0", None),
    ]
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: entries)
    return fast_board.address


def port_entry(device, serial_number):
    entry = ListPortInfo(device)
    entry.serial_number = serial_number
    return entry


def test_a_board_is_found_by_its_usb_serial_number(pimcal_run, plugged_in):
    assert resolve_port("usb:PIM-0001") == plugged_in
    assert pimcal_run("board", "info", "--port", "usb:PIM-0001", "--json").json["serial_number"] == "PIM-0001"


def test_ports_are_listed_as_a_profile_names_them(pimcal_run, plugged_in):
    listed = {port["device"]: port["port"] for port in pimcal_run("board", "list", "--json").json["ports"]}
    assert listed == {plugged_in: "usb:PIM-0001", "/dev/ttyUSB7": "usb:OTHER", "/dev/ttyS0": "/dev/ttyS0"}


def test_a_usb_serial_number_that_is_not_there_is_told_with_those_that_are(pimcal_run, plugged_in):
    done = pimcal_run("board", "info", "--port", "usb:PIM-0002")
    assert done.code == 69
    assert "no USB serial port has the serial number PIM-0002 (there are: OTHER, PIM-0001)" in done.err


def test_all_names_of_a_board_share_one_lock(pimcal_run, plugged_in):
    with Connection(SerialSettings(port=plugged_in)):
        assert pimcal_run("board", "info", "--port", "usb:PIM-0001").code == 75


def test_a_port_without_a_low_latency_mode_is_opened_all_the_same(fast_board):
    with serial.Serial(fast_board.address) as port, pytest.raises((OSError, ValueError)):
        port.set_low_latency_mode(True)
    transport = open_port(fast_board.address, START_BAUD, 0.1)
    transport.close()
