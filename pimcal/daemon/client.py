"""Talks to a running daemon."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from pimcal.daemon.address import address_of
from pimcal.errors import DeviceUnavailableError, UsageError

PATIENCE_S = 10.0


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The daemon's reply to a request.

    Raises DeviceUnavailableError where no daemon answers at `path`, UsageError with what it says where it refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, address_of(path) as address:
            connection.settimeout(PATIENCE_S)
            connection.connect(address)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as reader:
                line = reader.readline()
        reply = json.loads(line)
    except PermissionError as error:
        raise DeviceUnavailableError(f"the daemon at {path} belongs to another user; ask as that one") from error
    except (OSError, ValueError) as error:
        raise DeviceUnavailableError(
            f"no daemon answers at {path} ({error}); start one with `pimcal daemon`, or give its --socket"
        ) from error
    if "error" in reply:
        raise UsageError(f"the daemon refuses: {reply['error']}")
    return dict(reply)
