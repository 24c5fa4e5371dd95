"""Talks to a running daemon."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from pimcal.daemon.address import address_of
from pimcal.errors import DeviceUnavailableError, UsageError

PATIENCE_S = 10.0
LARGEST_REPLY = 2**20  # bytes
_DONE: Mapping[str, tuple[type, ...]] = {"done": (str,)}
_STATUS: Mapping[str, tuple[type, ...]] = {
    "state": (str,), "device": (str, NoneType), "decision": (list,), "last_look": (dict, NoneType),
    "counters": (dict,), "telemetry": (dict,), "problems": (dict,),
}  # fmt: skip


class NoDaemonError(DeviceUnavailableError):
    """Nobody listens at the daemon's socket."""


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The daemon's reply to a request.

    Raises NoDaemonError where nobody listens at `path`, DeviceUnavailableError where what does gives no answer, or not
    a daemon's; UsageError with what it says where it refuses.
    """
    try:
        line = _said(path, request)
    except PermissionError as error:
        raise DeviceUnavailableError(f"the daemon at {path} belongs to another user; ask as that one") from error
    except OSError as error:
        nobody = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        raise (NoDaemonError if nobody else DeviceUnavailableError)(
            f"no daemon answers at {path}: {_reason(error)}; start one with `pimcal daemon`, or give its --socket"
        ) from error
    reply = _object(path, line)
    if "error" in reply:
        raise UsageError(f"the daemon refuses: {reply['error']}")
    expected = _STATUS if request.get("do") == "status" else _DONE
    if not all(isinstance(reply.get(name, ...), types) for name, types in expected.items()):
        raise _another_program(path, line)
    return reply


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
        connection.connect(address)
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as reader:
            return reader.readline(LARGEST_REPLY)


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
