"""What `pimcal board` measures and tells of an open board, as plain data."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pimcal.errors import DeviceUnavailableError
from pimcal_serial.frames import MessageType
from pimcal_serial.messages import U32, Capability, Readings, SelfTest, Stats
from pimcal_serial.requests import BoardRestartedError, Request
from pimcal_serial.session import Session

_BITS_PER_BYTE = 10  # 8N1
_ROUND_TRIP_BYTES = 16
_FASTEST_SHARE = 1.2  # of the line rate, that buffers can make a measurement look like


def board_report(session: Session) -> dict[str, Any]:
    """HELLO, readings, self-test and counters."""
    said = asdict(session.info)
    said["capabilities"] = [bit.name.lower() for bit in Capability if bit in session.info.capabilities and bit.name]
    said["mvm_ns"] = session.info.mvm_ns or None  # 0: it does not say
    readings = Readings.decode(session.request(Request(MessageType.READ)))
    tested = SelfTest.decode(session.request(Request(MessageType.SELFTEST)))
    stats = Stats.decode(session.request(Request(MessageType.STATS)))
    counters = {f"frames_{name}" if name in _FRAMES else name: getattr(stats, name) for name in Stats.__slots__}
    return said | asdict(readings) | {"tiles_tested": tested.tested, "tiles_failed": list(tested.failed)} | counters


_FRAMES = ("received", "dropped", "other_version", "replayed", "sent")


def echo_report(session: Session, count: int, size: int) -> dict[str, Any]:
    """`count` frames of `size` random bytes there and back. Raises DeviceUnavailableError where one changes."""
    sent = [os.urandom(size) for _ in range(count)]
    requests = (Request(MessageType.ECHO, payload, answer_bytes=size) for payload in sent)
    wrong = sum(back != payload for back, payload in zip(session.request_many(requests), sent, strict=True))
    if wrong:
        raise DeviceUnavailableError(f"{wrong} of {count} frames came back wrong, with right check sums; it is no echo")
    return {"frames": count, "bytes": count * size, "repeats": session.counters.repeats}


def bench_report(
    session: Session, baud: int | None, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Round-trip times and goodput; shares of the line rate, where there is one."""
    trips = [_round_trip_ms(session, clock) for _ in _while(seconds, clock)]
    up, up_s = _stream(session, MessageType.SINK, seconds, clock)
    both, both_s = _stream(session, MessageType.ECHO, seconds, clock)
    found: dict[str, Any] = {
        "round_trips": len(trips),
        "round_trip_median_ms": statistics.median(trips),
        "round_trip_max_ms": max(trips),
        "to_board_bytes_per_s": up / up_s,
        "both_ways_bytes_per_s": both / both_s,
        "repeats": session.counters.repeats,
    }
    line = (baud or 0) / _BITS_PER_BYTE
    if up / up_s <= _FASTEST_SHARE * line:  # else there is no such line: a pseudo-terminal has no rate of its own
        found |= {"line_bytes_per_s": line, "to_board_share": up / up_s / line, "both_ways_share": both / both_s / line}
    return found


def restart(session: Session) -> int:
    """RESET; returns the new boot id, as soon as the board answers again."""
    with suppress(BoardRestartedError):
        session.request(Request(MessageType.RESET))
        session.hello()
        raise DeviceUnavailableError("the board took the reset but did not restart; update its firmware")
    return session.info.boot_id


def _round_trip_ms(session: Session, clock: Callable[[], float]) -> float:
    start = clock()
    session.request(Request(MessageType.ECHO, bytes(_ROUND_TRIP_BYTES), answer_bytes=_ROUND_TRIP_BYTES))
    return 1000 * (clock() - start)


def _stream(session: Session, kind: MessageType, seconds: float, clock: Callable[[], float]) -> tuple[int, float]:
    """Payload bytes that went to the board in full frames, and the time they took."""
    payload = os.urandom(session.info.max_payload)
    answer_bytes = len(payload) if kind == MessageType.ECHO else len(U32(0).encode())
    requests = (Request(kind, payload, answer_bytes=answer_bytes) for _ in _while(seconds, clock))
    start = clock()
    answers = sum(1 for _ in session.request_many(requests))
    return answers * len(payload), clock() - start


def _while(seconds: float, clock: Callable[[], float]) -> Iterator[None]:
    """Until the time is up, and at least once."""
    end = clock() + seconds
    yield
    while clock() < end:
        yield
