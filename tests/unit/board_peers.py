"""Boards and hosts as processes of their own, and a cable between them that can be pulled."""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from types import SimpleNamespace

import pytest

from pimcal_serial.frames import FrameReader
from pimcal_serial.simulator.ports import PtyPort, TcpPort

FIRMWARE = Path(__file__).parents[2] / "backends" / "pimcal_serial" / "firmware"
PATIENCE_S = 600.0  # no test is to depend on the speed of a machine
_LARGEST_FRAME = 1 << 21
_ROOM = 1 << 16  # bytes on their way to the board
_TICK_S = 0.02

_native = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="needs cc and make")
_qemu = pytest.mark.skipif(
    not (shutil.which("qemu-system-arm") and shutil.which("arm-none-eabi-gcc") and shutil.which("make")),
    reason="needs qemu-system-arm, arm-none-eabi-gcc and make",
)
PEERS = [
    "pimsim-pty",
    "pimsim-tcp",
    pytest.param("native-pty", marks=_native),
    pytest.param("native-tcp", marks=_native),
    pytest.param("qemu-pty", marks=_qemu),
    pytest.param("qemu-tcp", marks=_qemu),
]


def build_firmware(program, sources=FIRMWARE):
    """Have make build one program of the firmware; its name says which."""
    command = ["make", "-C", str(sources), f"BUILD={program.parent}", "CFLAGS=-O1", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class _Process:
    """A peer's process; `kill` is a power cut, and `start` gives it power again."""

    process = None

    def command(self):
        raise NotImplementedError

    def start(self):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command(), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        self._announced()

    def _announced(self):
        assert self.process.stdout.readline()

    def kill(self):
        self._end(signal.SIGKILL)

    def stop(self):
        self._end(signal.SIGTERM)

    def _end(self, number):
        if self.process is None:
            return
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                stream.close()
        self.process = None


class _Listening(_Process):
    """A peer that is reached over a pseudo-terminal at `path`, or over TCP where that is None."""

    def __init__(self, program, path):
        self._program, self._path = program, path
        self._port = None if path else _free_port()

    def command(self):
        return [*self._program, *(("--pty", str(self._path)) if self._path else ("--tcp", str(self._port)))]

    def start(self):
        if self._path:
            self._path.unlink(missing_ok=True)  # of a peer that was killed
        super().start()

    @property
    def address(self):
        return str(self._path) if self._path else f"socket://127.0.0.1:{self._port}"

    @contextmanager
    def line(self):
        """Descriptors to read from the board and to write to it."""
        if self._path:
            descriptor = os.open(self._path, os.O_RDWR | os.O_NOCTTY)
            try:
                yield descriptor, descriptor
            finally:
                os.close(descriptor)
        else:
            with socket.create_connection(("127.0.0.1", self._port), PATIENCE_S) as connected:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connected.setblocking(True)
                yield connected.fileno(), connected.fileno()


class _Emulated(_Process):
    """QEMU behind pipes; it has no address, and needs a cable to be reached."""

    def __init__(self, image):
        self._image = image

    def command(self):
        command = ["qemu-system-arm", "-M", "mps2-an385", "-kernel", str(self._image), "-display", "none"]
        return [*command, "-monitor", "none", "-serial", "stdio"]

    def _announced(self):
        pass

    @contextmanager
    def line(self):
        yield self.process.stdout.fileno(), self.process.stdin.fileno()


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Cable:
    """Carries bytes between a host and a peer that has been started, in a thread of its own.

    `at(count, kinds, action)`: when the host has sent `count` frames of these types, half of the last one passes, then
    `action()` is called in the cable's thread.
    """

    def __init__(self, peer, place):
        """`place`: a PtyPort or TcpPort, where hosts find the board."""
        self.peer, self.sent = peer, []  # `sent`: types of the frames that have come from the host
        self._place, self._rules = place, []
        self._reader = FrameReader(_LARGEST_FRAME)
        self._to_board, self._to_host = bytearray(), bytearray()
        self._line = self._opened = self._plug_at_s = None
        self._waking, self._wake = os.pipe()
        self._actions = Queue()
        self.heard = threading.Event()  # the board has said something
        self._thread = threading.Thread(target=self._run, name="cable")

    @property
    def address(self):
        return self._place.address

    @property
    def waits(self):
        """Whether an action is still to come."""
        return bool(self._rules)

    def at(self, count, kinds, action):
        self._rules.append((self._count(kinds) + count, kinds, action))

    # actions

    def unplug(self, seconds):
        """Pull the plug on the host's side; the board stays on power, and what it sends is lost."""
        self._do(lambda: self._unplug(seconds))

    def cut_power(self, seconds):
        """The board goes off, and comes back with another boot id; the host sees a silence."""
        self._do(lambda: self._cut_power(seconds))

    def inject(self, data):
        """Send the board what no host has sent."""
        self._to_board += data

    def _do(self, action):
        """Have it done by the cable's thread: closed by another one, a descriptor that it is about to read may already
        be somebody else's file."""
        if threading.current_thread() is self._thread:
            action()
            return
        done = Future()
        self._actions.put((action, done))
        done.result(PATIENCE_S)

    def _act(self):
        with suppress(Empty):
            action, done = self._actions.get_nowait()
            done.set_result(action())

    def _unplug(self, seconds):
        self._place.unplug()
        self._to_host.clear()
        self._plug_at_s = time.monotonic() + seconds

    def _cut_power(self, seconds):
        self._disconnect()
        self.peer.kill()
        time.sleep(seconds)
        self.peer.start()
        self._connect()

    # carrying

    def __enter__(self):
        self._place.plug()
        self._connect()
        self._thread.start()
        return self

    def __exit__(self, *_):
        os.write(self._wake, b"x")
        self._thread.join()
        self._place.unplug()
        self._disconnect()
        os.close(self._waking)
        os.close(self._wake)

    def _connect(self):
        self._opened = self.peer.line()
        self._line = self._opened.__enter__()
        for descriptor in self._line:
            os.set_blocking(descriptor, False)

    def _disconnect(self):
        if self._line is not None:
            self._opened.__exit__(None, None, None)
        self._line = None
        self._to_board.clear()

    def _run(self):
        while self._step():
            self._act()
            if self._plug_at_s is not None and time.monotonic() >= self._plug_at_s:
                self._plug_at_s = None
                self._place.plug()

    def _step(self):
        """Carry what is there; whether to go on."""
        host, listening, (reading, writing) = self._place.fd, self._place.listening, self._line or (None, None)
        from_hosts = (listening if host is None else host) if len(self._to_board) < _ROOM else None
        sinks = [writing if self._to_board else None, host if self._to_host else None]
        readable, writable, _ = select.select(_there([self._waking, reading, from_hosts]), _there(sinks), [], _TICK_S)
        if writing in writable:
            self._write(writing, self._to_board)
        if host in writable:
            self._write(host, self._to_host)
        if host is None and listening in readable:
            self._place.accept()
        if reading in readable:
            self._from_board(reading)
        if host is not None and host in readable:
            self._from_host(host)
        return self._waking not in readable

    def _write(self, descriptor, waiting):
        with suppress(OSError):
            del waiting[: os.write(descriptor, waiting)]

    def _from_board(self, reading):
        data = _read(reading)
        if data is None:
            self._disconnect()
            return
        self.heard.set()
        if self._place.fd is not None:
            self._to_host += data

    def _from_host(self, host):
        data = _read(host)
        if data is None:
            self._place.hang_up()
            self._to_host.clear()
        for piece in _pieces(data or b""):
            self._pass(piece)
            if self._place.fd != host:
                return  # what was behind is lost

    def _pass(self, piece):
        self.sent += [frame.type for frame in self._reader.feed(piece)]
        due = [rule for rule in self._rules if self._count(rule[1]) >= rule[0]]
        self._to_board += piece[: len(piece) // 2] if due else piece
        for rule in due:
            self._rules.remove(rule)
            rule[2]()

    def _count(self, kinds):
        return sum(kind in kinds for kind in self.sent)


def _there(descriptors):
    return [descriptor for descriptor in descriptors if descriptor is not None]


def _read(descriptor):
    """What is there; None where the other side is gone."""
    try:
        return os.read(descriptor, 65536) or None
    except BlockingIOError:
        return b""
    except OSError:
        return None


def _pieces(data):
    """Cut behind each zero, where frames end."""
    *ended, rest = data.split(b"\0")
    return [*(piece + b"\0" for piece in ended), *([rest] if rest else [])]


class Peers:
    """Starts any of `PEERS`; builds the firmware when it is first asked for, once."""

    def __init__(self, folder):
        self._folder, self._numbers = folder, iter(range(10**6))
        self._built = {}

    @contextmanager
    def cabled(self, kind, sources=FIRMWARE, **simulator):
        """A started peer at the end of a cable, whose `address` is a terminal or a TCP port as the peer's own is."""
        with self.running(kind, sources, **simulator) as peer:
            place = PtyPort(self._path("cable")) if kind.endswith("-pty") else TcpPort()
            with Cable(peer, place) as cable:
                if isinstance(peer, _Emulated):  # on a busy machine it starts later than a host waits for a board
                    assert cable.heard.wait(PATIENCE_S)
                yield cable

    @contextmanager
    def running(self, kind, sources=FIRMWARE, **simulator):
        """A started peer; `simulator`: settings of pimsim, which is exact without. QEMU needs a cable, see `cabled`."""
        peer = self._made(kind, sources, simulator)
        peer.start()
        try:
            yield peer
        finally:
            peer.stop()

    def program(self, name, sources=FIRMWARE):
        """The firmware as a file: pimboard, or pimboard-mps2.elf."""
        if (name, sources) not in self._built:
            program = self._path("build") / name
            build_firmware(program, sources)
            self._built[name, sources] = program
        return self._built[name, sources]

    def _made(self, kind, sources, simulator):
        what, _, where = kind.partition("-")
        if what == "qemu":
            return _Emulated(self.program("pimboard-mps2.elf", sources))
        if what == "native":
            program = [str(self.program("pimboard", sources))]
        else:
            program = [sys.executable, "-m", "pimcal", "board", "simulate", "--profile", self._profile(simulator)]
        return _Listening(program, self._path("board") if where == "pty" else None)

    def _profile(self, simulator):
        path = self._path("profile").with_suffix(".yaml")
        device = {"port": "sim:", "simulator": {"tiles": 8, **simulator}}
        path.write_text(f"schema: pimcal/1\nbackend: serial\ndevice: {json.dumps(device)}\n")
        return str(path)

    def _path(self, name):
        return self._folder / f"{name}-{next(self._numbers)}"


# Imports what takes seconds, then forks: every run is a process of its own all the same. A child ends without Python's
# own end, which takes a second where torch is loaded.
NURSERY = """
import gc, json, os, sys
import numpy.random, pydantic, rich.table, safetensors.torch, serial.urlhandler.protocol_socket, torch
import pimcal, pimcal.calibration.gate, pimcal.deployment, pimcal_serial.backend, pimcal_serial.report
from pimcal.cli.app import build, main

build()
torch.set_num_threads(1)
gc.freeze()


def run(asked):
    for number, path in enumerate((os.devnull, asked["out"], asked["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), number)
    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    sys.argv = ["pimcal", *asked["arguments"]]
    try:
        main()
    except SystemExit as left:
        sys.stdout.flush()
        os._exit(left.code or 0)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(json.loads(line))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Hosts:
    """Runs `pimcal` as a process in an empty folder, one at a time; `folder` is that, `beside` the one around it."""

    def __init__(self, nursery, beside):
        self._nursery, self.beside, self.folder, self.process_id = nursery, beside, beside / "here", None
        self._out, self._err = beside / "out", beside / "err"
        self.environment = {"XDG_RUNTIME_DIR": str(beside / "runtime")}
        self.folder.mkdir()

    def start(self, *arguments):
        self._out.unlink(missing_ok=True)
        self._err.unlink(missing_ok=True)
        asked = {"out": str(self._out), "err": str(self._err), "folder": str(self.folder)}
        asked |= {"arguments": [*map(str, arguments)], "environment": self.environment}
        print(json.dumps(asked), file=self._nursery.stdin, flush=True)
        self.process_id = int(self._nursery.stdout.readline())
        return self.process_id

    def wait(self):
        """Exit code (negative: the signal that has ended it) and what was said."""
        code = int(self._nursery.stdout.readline())
        done = SimpleNamespace(code=code, out=self._out.read_text(), err=self._err.read_text())
        assert "Traceback" not in done.err
        return done

    def run(self, *arguments):
        self.start(*arguments)
        return self.wait()

    def profile(self, port, **device):
        """The path of a profile for a board at `port`, which is waited for as long as it takes to start it again."""
        path = self.beside / "profile.yaml"
        settings = {"port": port, "margin_s": 0.1, "connect_s": 1.0, "reconnect_s": PATIENCE_S, **device}
        path.write_text(f"schema: pimcal/1\nbackend: serial\ndevice: {json.dumps(settings)}\n")
        return str(path)


@contextmanager
def nursery():
    """What `Hosts` has its processes from."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", NURSERY], stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.stdin.close()
        process.wait(PATIENCE_S)
