"""Talks to a running daemon."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any

from pimcal.daemon.address import address_of
from pimcal.errors import DeviceBusyError, DeviceUnavailableError, UsageError

PATIENCE_S, _AGAIN_S = 10.0, 0.05
LARGEST_REPLY = 2**20  # bytes
_DONE: Mapping[str, tuple[type, ...]] = {"done": (str,)}
_STATUS: Mapping[str, tuple[type, ...]] = {
    "state": (str,), "device": (str, NoneType), "decision": (list,), "last_look": (dict, NoneType),
    "counters": (dict,), "telemetry": (dict,), "problems": (dict,),
}  # fmt: skip


class NoDaemonError(DeviceUnavailableError):
    """Nobody listens at the daemon's socket."""


class DaemonBusyError(DeviceBusyError, DeviceUnavailableError):
    """A daemon listens, and has no time: others hold its socket, or it does something long."""

    exit_code = DeviceBusyError.exit_code


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The daemon's reply to a request.

    Raises NoDaemonError where nobody listens at `path`, DaemonBusyError where one does that has no time,
    DeviceUnavailableError where what does gives no answer, or not a daemon's; UsageError with what it says where it
    refuses.
    """
    try:
        line = _said(path, request)
    except PermissionError as error:
        raise DeviceUnavailableError(f"the daemon at {path} belongs to another user; ask as that one") from error
    except (BlockingIOError, TimeoutError) as error:
        raise _busy(path) from error
    except OSError as error:
        nobody = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        raise (NoDaemonError if nobody else DeviceUnavailableError)(
            f"no daemon answers at {path}: {_reason(error)}; start one with `pimcal daemon`, or give its --socket"
        ) from error
    reply = _object(path, line)
    if reply.get("busy") is True:
        raise _busy(path)
    if "error" in reply:
        raise UsageError(f"the daemon refuses: {reply['error']}")
    expected = _STATUS if request.get("do") == "status" else _DONE
    if not all(isinstance(reply.get(name, ...), types) for name, types in expected.items()):
        raise _another_program(path, line)
    return reply


def _busy(path: Path) -> DaemonBusyError:
    return DaemonBusyError(f"the daemon at {path} is busy with other clients, or with something long; try again later")


def _reason(error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such socket (it may still be starting)"
        case ConnectionRefusedError():
            return "nobody listens there any more"
        case _:
            return error.strerror or str(error)


def _said(path: Path, request: dict[str, Any]) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, address_of(path) as address:
        connection.settimeout(PATIENCE_S)
        _connect(connection, address)
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have said why it listens no more
            connection.sendall(json.dumps(request).encode() + b"\n")
        try:
            with connection.makefile("rb") as reader:
                return reader.readline(LARGEST_REPLY)
        except ConnectionResetError:
            return b""


def _connect(connection: socket.socket, address: str) -> None:
    """Where too many wait for a daemon to accept them, wait outside; the kernel has no queue for those."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return connection.connect(address)
        except BlockingIOError:
            if time.monotonic() > end_s:
                raise
            time.sleep(_AGAIN_S)


def _object(path: Path, line: bytes) -> dict[str, Any]:
    if not line:
        raise DeviceUnavailableError(f"what listens at {path} hung up without an answer; look at the daemon's log")
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _another_program(path, line) from error
    if not isinstance(reply, dict):
        raise _another_program(path, line)
    return reply


def _another_program(path: Path, line: bytes) -> DeviceUnavailableError:
    said = ascii(line.decode(errors="replace").strip()[:80])
    return DeviceUnavailableError(
        f"what answers at {path} is no daemon of this pimcal: it says {said}; give the daemon's --socket"
    )
