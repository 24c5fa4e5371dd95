"""The daemon's local socket: one line of JSON in, one line of JSON out. For its owner only.

Runs in the main thread's selector and never waits for a client: one that sends nothing, too much, or nonsense loses its
connection or gets an error, and nobody else notices.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import stat
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from pimcal.daemon.address import address_of
from pimcal.daemon.lock import held
from pimcal.daemon.requests import parse_request
from pimcal.errors import DeviceBusyError, PimcalError, StorageError, UsageError

logger = logging.getLogger(__name__)

LARGEST_REQUEST = 4096  # bytes
PATIENCE_S = 5.0  # for a client to say all, or to take something
SILENCE_S = 1.0  # for a client to say anything: who connects has a request at hand
MOST_CLIENTS = 16
BUSY = {"error": "it is busy with other clients; try again", "busy": True}
Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Control:
    """Listens from construction to `close`."""

    def __init__(self, path: Path, selector: selectors.BaseSelector, answer: Answer) -> None:
        """`answer(request)` gives the reply; what it raises becomes {"error": ...}.

        A lock beside the socket is held until `close`: of several daemons that start at once, one takes the place of
        one that was killed. Raises DeviceBusyError where another daemon has `path`, StorageError where no socket can be
        made there.
        """
        self._path, self._selector, self._answer = path, selector, answer
        self._clients: dict[socket.socket, _Client] = {}
        with ExitStack() as stack:
            stack.enter_context(held(path.with_name(f"{path.name}.lock"), f"socket {path}"))
            self._socket = stack.enter_context(_listening(path))
            self._inode = path.stat().st_ino
            selector.register(self._socket, selectors.EVENT_READ, self._accept)
            self._held = stack.pop_all()

    def close(self) -> None:
        for client in [*self._clients]:
            self._drop(client)
        self._selector.unregister(self._socket)
        with self._held, suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # not another daemon's
                self._path.unlink()

    def drop_slow(self) -> None:
        """Let go of clients who take too long. Call it from time to time."""
        now_s = time.monotonic()
        for connection, client in [*self._clients.items()]:
            if now_s - client.since_s > (SILENCE_S if client.idle else PATIENCE_S):
                self._drop(connection)

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._socket.accept()
            connection.setblocking(False)
            self._make_room()
            self._clients[connection] = _Client()
            if len(self._clients) > MOST_CLIENTS:
                self._send(connection, BUSY)
            else:
                self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(connection))

    def _make_room(self) -> None:
        """Where the house is full, the one goes that has been silent the longest; else the one of those over it."""
        self.drop_slow()
        if len(self._clients) >= MOST_CLIENTS:
            idle = [connection for connection, client in self._clients.items() if client.idle]
            over = [*self._clients][MOST_CLIENTS : MOST_CLIENTS + 1] if len(self._clients) >= 2 * MOST_CLIENTS else []
            for connection in idle[:1] or over:  # in the order in which they came
                self._drop(connection)

    def _read(self, connection: socket.socket) -> None:
        client = self._clients[connection]
        try:
            data = connection.recv(LARGEST_REQUEST + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.received += data
        if b"\n" in client.received or len(client.received) > LARGEST_REQUEST:
            self._selector.unregister(connection)
            self._send(connection, self._reply(client.received))
        elif not data:
            self._drop(connection)

    def _send(self, connection: socket.socket, reply: dict[str, Any]) -> None:
        client = self._clients[connection]
        client.to_send = (json.dumps(reply) + "\n").encode()
        client.since_s = time.monotonic()  # what it took until now may have been the daemon's own delay
        self._selector.register(connection, selectors.EVENT_WRITE, lambda: self._write(connection))

    def _write(self, connection: socket.socket) -> None:
        client = self._clients[connection]
        try:
            sent = connection.send(client.to_send)
        except BlockingIOError:
            return
        except OSError:
            sent = len(client.to_send)
        client.to_send = client.to_send[sent:]
        if not client.to_send:
            client.answered = True
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            self._selector.modify(connection, selectors.EVENT_READ, lambda: self._drain(connection))

    def _drain(self, connection: socket.socket) -> None:
        """Take what the client says after its reply: closed before that, the kernel would throw the reply away."""
        try:
            if connection.recv(LARGEST_REQUEST):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._drop(connection)

    def _reply(self, received: bytes) -> dict[str, Any]:
        if len(received) > LARGEST_REQUEST:
            return {"error": f"a request has at most {LARGEST_REQUEST} bytes"}
        try:
            request = parse_request(received.partition(b"\n")[0])
        except UsageError as error:
            return {"error": str(error)}
        try:
            return self._answer(request)
        except PimcalError as error:
            return {"error": str(error)}
        except Exception as error:  # a mistake in answering does not end the daemon
            logger.exception("the daemon's own error, when it was asked for %r", request.get("do"))
            return {"error": f"the daemon's own error, see its log: {type(error).__name__}: {error}"}

    def _drop(self, connection: socket.socket) -> None:
        del self._clients[connection]
        self._selector.unregister(connection)
        connection.close()


class _Client:
    def __init__(self) -> None:
        self.received, self.to_send = b"", b""
        self.answered = False
        self.since_s = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether nobody misses anything where it goes: it has said nothing, or has its answer."""
        return self.answered or not (self.received or self.to_send)


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address_of(path) as address:
            _make_room(path, address)
            before = os.umask(0o177)  # no moment at which others could connect
            try:
                listener.bind(address)
            finally:
                os.umask(before)
        listener.listen(MOST_CLIENTS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StorageError(
            f"cannot make the socket {path}: {error.strerror or error}; give --socket another path"
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _make_room(path: Path, address: str) -> None:
    """Remove the socket of a daemon that was killed."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StorageError(f"{path} is there and no socket; give --socket another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.settimeout(PATIENCE_S)
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except (BlockingIOError, TimeoutError) as error:
            raise DeviceBusyError(
                f"another program listens at {path}, and answers nobody; end it, or give --socket another path"
            ) from error
        else:
            raise DeviceBusyError(
                f"process {_peer(probe)} listens at {path}; stop it, a daemon with `pimcal daemon stop`, or give "
                "--socket another path"
            )


def _peer(connection: socket.socket) -> int:
    """The process at the other end."""
    process, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(process)
