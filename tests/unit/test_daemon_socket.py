"""The daemon's socket from both ends: who may listen there, what a mistake does, and what a client takes."""

import json
import logging
import selectors
import socket
import threading
from contextlib import closing, contextmanager

import pytest

from pimcal.daemon.client import NoDaemonError, ask
from pimcal.daemon.clock import told_time
from pimcal.daemon.control import Control
from pimcal.daemon.status import Status
from pimcal.errors import DeviceBusyError, DeviceUnavailableError, StorageError, UsageError

ROUNDS, AT_ONCE = 60, 4


@contextmanager
def answering(path, answer):
    """A daemon's end, served by a thread of its own."""
    with selectors.DefaultSelector() as selector, closing(Control(path, selector, answer)):
        stop = threading.Event()

        def serve():
            while not stop.is_set():
                for key, _ in selector.select(0.01):
                    key.data()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def another_program(path, says):
    """Listens, and says the same to everybody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(says)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def left_behind(path):
    """The socket of a daemon that was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as killed:
        killed.bind(str(path))


# --- who listens


def test_of_daemons_that_start_at_once_over_a_stale_socket_one_listens(tmp_path):
    for turn in range(ROUNDS):
        path = tmp_path / f"{turn}.sock"
        left_behind(path)
        made, refused = started_at_once(path)
        try:
            assert len(made) == 1
            assert {type(error) for error in refused} == {DeviceBusyError}
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(str(path))
        finally:
            for control in made:
                control.close()
        assert not path.exists()


def started_at_once(path):
    """The ends that came to be, and the errors of the others."""
    barrier, made, refused = threading.Barrier(AT_ONCE), [], []

    def start():
        barrier.wait()
        try:
            made.append(Control(path, selectors.SelectSelector(), dict))
        except Exception as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made, refused


def test_a_closed_socket_is_free_for_the_next_one(tmp_path):
    path = tmp_path / "daemon.sock"
    for _ in range(3):
        with answering(path, lambda request: {"done": "it"}):
            assert ask(path, {"do": "it"}) == {"done": "it"}
        with pytest.raises(NoDaemonError):
            ask(path, {"do": "it"})


def test_a_program_that_answers_nobody_has_the_socket_all_the_same(tmp_path):
    path = tmp_path / "daemon.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as full, socket.socket(socket.AF_UNIX) as waiting:
        full.bind(str(path))
        full.listen(0)
        waiting.connect(str(path))
        with pytest.raises(DeviceBusyError, match="answers nobody"):
            Control(path, selectors.SelectSelector(), dict)
    assert path.exists()


def test_where_no_socket_can_be_made_it_says_so(tmp_path):
    with pytest.raises(StorageError, match="its folder must be there"):
        Control(tmp_path / "nowhere" / "daemon.sock", selectors.SelectSelector(), dict)


# --- what it answers


def test_a_mistake_in_answering_is_told_and_logged_and_the_next_request_is_answered(tmp_path, caplog):
    def answer(request):
        return {"done": 1 / request["by"]}

    path = tmp_path / "daemon.sock"
    with caplog.at_level(logging.ERROR), answering(path, answer):
        with pytest.raises(UsageError, match="the daemon's own error, see its log: ZeroDivisionError"):
            ask(path, {"do": "divide", "by": 0})
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
            client.sendall(b'{"do": "divide", "by": 2}\n')
            assert json.loads(client.makefile("rb").readline()) == {"done": 0.5}
    (logged,) = caplog.records
    assert logged.exc_info is not None
    assert "'divide'" in logged.getMessage()


@pytest.mark.parametrize("wall_s", [2.6e11, 1e14, 1e300, float("inf")])
def test_a_time_beyond_all_calendars_can_be_told(wall_s):
    assert told_time(wall_s) == "9999-12-31T23:59:59+00:00"
    assert Status(released_until_s=wall_s).as_dict()["released_until"] == told_time(wall_s)


def test_usual_times_are_told_to_the_second():
    assert told_time(1_767_225_600.4) == "2026-01-01T00:00:00+00:00"
    assert told_time(None) is None


# --- what a client takes


@pytest.mark.parametrize("asked", ["status", "pause"])
@pytest.mark.parametrize(
    "says",
    [b"5\n", b"{}\n", b"[]\n", b"null\n", b"hello\n", b'{"state": "up"}\n', b'{"done": 1}\n', b"[" * 9000 + b"\n"],
)
def test_the_answer_of_another_program_is_shown(tmp_path, says, asked):
    path = tmp_path / "daemon.sock"
    told = pytest.raises(DeviceUnavailableError, match="is no daemon of this pimcal: it says")
    with another_program(path, says), told as caught:
        ask(path, {"do": asked})
    assert says[:20].decode().strip() in str(caught.value)
    assert len(str(caught.value)) < 300


def test_one_that_hangs_up_is_no_daemon_that_has_ended(tmp_path):
    path = tmp_path / "daemon.sock"
    with another_program(path, b""), pytest.raises(DeviceUnavailableError, match="hung up") as caught:
        ask(path, {"do": "status"})
    assert not isinstance(caught.value, NoDaemonError)
