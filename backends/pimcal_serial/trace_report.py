"""What is in a trace, frame by frame and in sum, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pimcal_serial.frames import ANSWER, NO_TILE, VERSION, Frame, MessageType, PayloadError, Status
from pimcal_serial.inputs import InputFormat, OutputFormat
from pimcal_serial.messages import (
    U32,
    BoardInfo,
    Boot,
    HostInfo,
    Log,
    Mvm,
    MvmGather,
    Program,
    ProgramResult,
    Readback,
    Readings,
    SelfTest,
    Stats,
    WriteBuffer,
)
from pimcal_serial.recording import Recording, Sighting, sightings
from pimcal_serial.trace import EVENT, NOTE, SENT, Entry, Trace

BROKEN = "BROKEN"
KINDS = (*(kind.name for kind in MessageType), BROKEN, EVENT.upper())  # what a row's `type` can be


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. `bytes` are the payload's; of what is no frame, all. `tile` None: no tile is meant."""

    time_s: float
    direction: str | None  # sent, received; None for an event
    type: str
    sequence: int | None = None
    tile: int | None = None
    status: str | None = None
    bytes: int | None = None
    meaning: str = ""


def trace_report(trace: Trace, kinds: Collection[str] = (), limit: int | None = None) -> dict[str, Any]:
    """The header, a summary of all, and the first `limit` rows (None: all) of the types `kinds` (none: all).

    In the summary `broken` counts what is no frame, `repeats` requests that were sent again, `unused` those whose
    answer never came or came too late to be used, `refused` answers other than OK.

    Raises DataError for a damaged trace.
    """
    counts, rows = _Counts(), list[Row]()
    for sighting in sightings(counts.bytes_of(trace)):
        repeated = counts.recording.take(sighting)
        if sighting.kind == NOTE:
            continue
        counts.take(sighting)
        if (limit is None or len(rows) < limit) and (not kinds or _kind(sighting) in kinds):
            rows.append(_row(sighting, repeated))
    return {"trace": trace.header, "summary": counts.summary(), "rows": [asdict(row) for row in rows]}


@dataclass(slots=True)
class _Counts:
    bytes_: Counter[str] = field(default_factory=Counter)
    frames: Counter[tuple[str, str]] = field(default_factory=Counter)  # by type and direction
    refused: int = 0
    seconds: float = 0.0
    recording: Recording = field(default_factory=Recording)

    def bytes_of(self, trace: Trace) -> Iterator[Entry]:
        """The entries, counted on their way."""
        for entry in trace.entries():
            self.bytes_[entry.kind] += len(entry.data)
            self.seconds = entry.time_s
            yield entry

    def take(self, sighting: Sighting) -> None:
        self.frames[_kind(sighting), sighting.kind] += 1
        self.refused += sighting.frame is not None and sighting.kind != SENT and sighting.frame.status != Status.OK

    def summary(self) -> dict[str, Any]:
        kinds = sorted({kind for kind, _ in self.frames} - {EVENT.upper()})
        by_type = {kind: {way: self.frames[kind, way] for way in ("sent", "received")} for kind in kinds}
        broken = by_type.pop(BROKEN, {"sent": 0, "received": 0})
        unused = sum(exchange.answer is None for exchange in self.recording.exchanges)
        return {
            "seconds": self.seconds,
            "sent_bytes": self.bytes_["sent"],
            "received_bytes": self.bytes_["received"],
            "sent_broken": broken["sent"],
            "received_broken": broken["received"],
            "requests": len(self.recording.exchanges),
            "repeats": self.recording.repeats,
            "unused": unused,
            "refused": self.refused,
            "restarts": self.recording.epoch,
            "frames": by_type,
        }


def _kind(sighting: Sighting) -> str:
    if sighting.frame is None:
        return EVENT.upper() if sighting.kind == EVENT else BROKEN
    return _name(sighting.frame)


def _name(frame: Frame) -> str:
    code = frame.type & ~ANSWER
    return MessageType(code).name if code in set(MessageType) else f"0x{code:02x}"


def _row(sighting: Sighting, repeated: bool) -> Row:
    frame, sent = sighting.frame, sighting.kind == SENT
    direction = None if sighting.kind == EVENT else sighting.kind
    row = Row(sighting.time_s, direction, _kind(sighting), bytes=sighting.size or None, meaning=sighting.text)
    if frame is None:
        return row
    return replace(
        row,
        sequence=frame.sequence,
        tile=None if frame.tile == NO_TILE else frame.tile,
        status=None if sent else _status(frame.status),
        bytes=len(frame.payload),
        meaning=_meaning(sent, frame) + (" (repeated)" if repeated else ""),
    )


def _status(code: int) -> str:
    return Status(code).name if code in set(Status) else str(code)


def _meaning(sent: bool, frame: Frame) -> str:
    """In a few words; nothing for what is empty or makes no sense."""
    if frame.version != VERSION:
        return f"version {frame.version} of the protocol"
    if frame.status == Status.FAULT:
        return frame.payload.decode(errors="replace")
    tell = (_REQUESTS if sent else _ANSWERS).get(frame.type & ~ANSWER)
    with suppress(PayloadError):
        return tell(frame.payload) if tell and frame.status == Status.OK else ""
    return "makes no sense"


def _hello(payload: bytes) -> str:
    board = BoardInfo.decode(payload)
    size = f"{board.tiles} tiles of {board.rows} x {board.cols}"
    return f"{board.model} {board.serial_number}, firmware {board.firmware}, {size}, boot id {board.boot_id}"


def _program(payload: bytes) -> str:
    part = Program.decode(payload)
    count, cols = part.weights.shape
    return f"rows {part.first} to {part.first + count - 1} of {part.rows} x {cols}, id {part.id}"


def _readback(payload: bytes) -> str:
    part = Readback.decode(payload)
    return f"{part.count} rows from row {part.first}"


def _mvm(payload: bytes) -> str:
    product = Mvm.decode(payload)
    vectors = f"{len(product.inputs)} vectors, {_words(product.input_format)} to {_words(product.output_format)}"
    return f"{vectors}, {_part(product)}"


def _gather(payload: bytes) -> str:
    product = MvmGather.decode(payload)
    vectors = f"{product.positions} vectors from address {product.base}, to {_words(product.output_format)}"
    return f"{vectors}, {_part(product)}"


def _part(product: Mvm | MvmGather) -> str:
    """Which part of the tile, and by what its outputs are divided."""
    rows = f"rows {product.first_row} to {product.first_row + product.rows - 1}"
    to = str(product.first_col + product.cols - 1) if product.cols else "the last"
    return f"{rows}, columns {product.first_col} to {to}, step {product.step}"


def _words(form: InputFormat | OutputFormat) -> str:
    return form.name.lower().replace("_", "-")


def _clipped(payload: bytes) -> str:
    return f"{U32.decode(payload[:4]).value} values clipped"


def _write_buffer(payload: bytes) -> str:
    part = WriteBuffer.decode(payload)
    return f"{len(part.values)} values at address {part.address}, {_words(part.input_format)}"


def _readings(payload: bytes) -> str:
    found = Readings.decode(payload)
    units = ((found.temperature_c, "C"), (found.supply_mv, "mV"), (found.uptime_ms, "ms since start"))
    return ", ".join(f"{value} {unit}" for value, unit in units if value is not None)


def _self_test(payload: bytes) -> str:
    found = SelfTest.decode(payload)
    return f"{found.tested} tiles tested, failed: {', '.join(map(str, found.failed)) or 'none'}"


def _stats(payload: bytes) -> str:
    found = Stats.decode(payload)
    return f"{found.received} frames received, {found.dropped} dropped, {found.multiplied} vectors multiplied"


def _log(payload: bytes) -> str:
    return Log.decode(payload).text


_REQUESTS: dict[int, Callable[[bytes], str]] = {
    MessageType.HELLO: lambda payload: HostInfo.decode(payload).name,
    MessageType.PROGRAM: _program,
    MessageType.READBACK: _readback,
    MessageType.MVM: _mvm,
    MessageType.MVM_GATHER: _gather,
    MessageType.WRITE_BUFFER: _write_buffer,
    MessageType.BAUD: lambda payload: f"{U32.decode(payload).value} bit/s",
}
_ANSWERS: dict[int, Callable[[bytes], str]] = {
    MessageType.HELLO: _hello,
    MessageType.PROGRAM: lambda payload: f"{ProgramResult.decode(payload).missing} rows missing",
    MessageType.MVM: _clipped,
    MessageType.MVM_GATHER: _clipped,
    MessageType.READ: _readings,
    MessageType.SELFTEST: _self_test,
    MessageType.STATS: _stats,
    MessageType.LOG: _log,
    MessageType.BOOT: lambda payload: f"boot id {Boot.decode(payload).boot_id}",
}
