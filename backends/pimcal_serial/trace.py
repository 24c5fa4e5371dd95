"""Every byte between host and board, in a file: written while it happens, read back later. Knows nothing of frames.

A file holds one session: JSON lines, the first a header, then one for each transfer and event. Bytes are in base64.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pimcal import __version__
from pimcal.errors import DataError, DeviceUnavailableError, StorageError, UsageError
from pimcal.files import open_regular
from pimcal_serial.transport import LinkError, Transport

FORMAT, VERSION = "pimcal serial trace", 1
_LONGEST_HEADER = 1 << 16

Kind = Literal["sent", "received", "event", "note"]
SENT: Kind = "sent"
RECEIVED: Kind = "received"
EVENT: Kind = "event"
NOTE: Kind = "note"  # of the host, on what the bytes do not tell
OPENED = "opened"  # the event before the first bytes, and after each time that the port was lost


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened at `time_s` after the start: `data` went over the line, or an event or note `text`."""

    time_s: float
    kind: Kind
    data: bytes = b""
    text: str = ""
    values: tuple[int, ...] = ()  # of a note


class TraceWriter:
    """A new trace file. Each entry goes to the operating system at once, so that a crash leaves a readable trace."""

    def __init__(self, path: Path, port: str, baud: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises UsageError where there is such a file, StorageError where none can be made."""
        self._path, self._clock, self._start_s, self._used = path, clock, clock(), False
        try:
            self._file = path.open("xb")
        except FileExistsError as error:
            raise UsageError(f"{path} exists, and a trace replaces nothing; name another file, or remove it") from error
        except OSError as error:
            raise StorageError(f"cannot make the trace {path}: {error.strerror or error}; name another file") from error
        started = datetime.now(UTC).isoformat(timespec="seconds")
        header = {"format": FORMAT, "version": VERSION, "port": port, "baud": baud}
        self._write_json(header | {"pimcal": __version__, "started": started})

    def transfer(self, kind: Kind, data: bytes) -> None:
        """Note bytes on the line; none are no entry. Raises StorageError."""
        if data:
            self._used = True
            self._write(b'{"time_s": %.6f, "%s": "%s"}' % (self._now_s(), kind.encode(), base64.b64encode(data)))

    def event(self, text: str) -> None:
        """Note what else happened. Raises StorageError."""
        self._write_json({"time_s": self._now_s(), EVENT: text})

    def note(self, text: str, *values: int) -> None:
        """Note something for a replay. Raises StorageError."""
        self._write_json({"time_s": self._now_s(), NOTE: text, "values": values})

    def close(self) -> None:
        """End the trace; one without a byte is removed, so that it is not in the way of the next attempt."""
        if self._file.closed:
            return
        with self._storage_errors():
            self._file.close()
            if not self._used:
                self._path.unlink(missing_ok=True)

    def _now_s(self) -> float:
        return round(self._clock() - self._start_s, 6)

    def _write_json(self, line: dict[str, Any]) -> None:
        self._write(json.dumps(line).encode())

    def _write(self, line: bytes) -> None:
        if self._file.closed:
            return
        with self._storage_errors():
            self._file.write(line + b"\n")
            self._file.flush()

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"cannot write the trace {self._path}: {error.strerror or error}; what came before is in it"
            ) from error


class TracedTransport:
    """A transport whose bytes, rates and failures are written to a trace."""

    def __init__(self, transport: Transport, writer: TraceWriter) -> None:
        self._transport, self._writer = transport, writer

    def exchange(self, outgoing: bytes | bytearray, timeout_s: float) -> tuple[int, bytes]:
        with _failures(self._writer):
            taken, received = self._transport.exchange(outgoing, timeout_s)
        self._writer.transfer(SENT, bytes(outgoing[:taken]))
        self._writer.transfer(RECEIVED, received)
        return taken, received

    def set_baud(self, baud: int) -> None:
        with _failures(self._writer):
            self._transport.set_baud(baud)
        self._writer.event(f"line rate {baud}")

    def close(self) -> None:
        self._transport.close()
        self._writer.event("closed")


def traced(connect: Callable[[], Transport], writer: TraceWriter) -> Callable[[], Transport]:
    """`connect`, for a session that is traced."""

    def connect_traced() -> Transport:
        with _failures(writer):
            transport = connect()
        writer.event(OPENED)
        return TracedTransport(transport, writer)

    return connect_traced


@contextmanager
def _failures(writer: TraceWriter) -> Iterator[None]:
    try:
        yield
    except (LinkError, DeviceUnavailableError) as error:
        writer.event(f"failed: {error}")
        raise


class Trace:
    """A trace file, for reading. A last line that a crash has cut is left out."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for what is no trace, or one of another version."""
        self.path = path
        with self._opened() as lines:
            self.header = _header(path, next(lines, b""))

    def entries(self) -> Iterator[Entry]:
        """All entries, in their order. Raises DataError for a damaged line."""
        with self._opened() as lines:
            next(lines)
            for number, line in enumerate(lines, 2):
                if line.endswith(b"\n"):
                    yield self._entry(number, line)

    @contextmanager
    def _opened(self) -> Iterator[Iterator[bytes]]:
        try:
            with open_regular(self.path) as file:
                yield iter(file)
        except OSError as error:
            raise DataError(f"the trace {self.path} cannot be read: {error.strerror or error}") from error

    def _entry(self, number: int, line: bytes) -> Entry:
        try:
            found = json.loads(line)
            time_s = float(found["time_s"])
            if EVENT in found:
                return Entry(time_s, EVENT, text=str(found[EVENT]))
            if NOTE in found:
                return Entry(time_s, NOTE, text=str(found[NOTE]), values=tuple(map(int, found["values"])))
            kind = SENT if SENT in found else RECEIVED
            return Entry(time_s, kind, base64.b64decode(found[kind], validate=True))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"the trace {self.path} is damaged in line {number}; record it anew") from error


def _header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line) if len(line) <= _LONGEST_HEADER else None
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(f"{path} is no trace of a session with a board; --trace FILE or device.trace records one")
    if header.get("version") != VERSION:
        raise DataError(
            f"{path} is a trace of version {header.get('version')}, this pimcal reads version {VERSION}; "
            "read it with the pimcal that recorded it, or record it anew"
        )
    return header
