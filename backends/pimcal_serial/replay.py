"""A board made from a trace: it answers as the board answered then.

What is replayed is what the host was told, not how the line behaved: a lost frame, a repetition or a lost port is not
seen again, nor is what the board said in LOG. A restart is seen again: instead of an answer, where all that were used
before it are used up.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pimcal.errors import DataError
from pimcal_serial.frames import (
    ANSWER,
    NO_TILE,
    Frame,
    FrameReader,
    MessageType,
    PayloadError,
    Status,
    encode_frame,
    encoded_size,
)
from pimcal_serial.messages import BoardInfo, Boot, Program
from pimcal_serial.recording import ANSWERS, OF_THE_LINK, PAYLOAD, Exchange, Recording, sightings
from pimcal_serial.requests import Request
from pimcal_serial.session import Session
from pimcal_serial.trace import Trace, TraceWriter
from pimcal_serial.transport import DirectTransport, Transport

_Key = tuple[int, int, int, bytes]  # epoch, type, tile, what is meant

_SAID_AGAIN = (MessageType.READ, MessageType.STATS)


class TracedSession(Session):
    """A session that notes what its bytes do not tell, and a replay needs: how many answers of a run were used, and how
    long payloads were to be, which depends on the errors of the link."""

    def __init__(self, writer: TraceWriter, connect: Callable[[], Transport], **options: Any) -> None:
        """`options`: those of a session."""
        self._writer, self._questions, self._told, self._is_run = writer, 0, 0, True
        super().__init__(connect, **options)

    def request_many(self, requests: Iterable[Request]) -> Iterator[bytes]:
        self._questions = self._told = used = 0
        try:
            for payload in super().request_many(requests):
                used += 1
                yield payload
        finally:
            if self._is_run:
                self._writer.note(ANSWERS, used)

    def set_baud(self, baud: int) -> None:
        self._is_run = False  # a replay has no rate
        try:
            super().set_baud(baud)
        finally:
            self._is_run = True

    @property
    def best_payload(self) -> int:
        best = super().best_payload
        if best != self._told:
            self._writer.note(PAYLOAD, self._questions, best)
        self._questions, self._told = self._questions + 1, best
        return best


class ReplaySession(Session):
    """A session with a replayed board, whose payloads are as long as they were then."""

    def __init__(self, board: ReplayedBoard, **options: Any) -> None:
        """`options`: those of a session."""
        self._payloads, self._run, self._questions = board.payloads, -1, 0
        super().__init__(board.transport, **options)

    def request_many(self, requests: Iterable[Request]) -> Iterator[bytes]:
        self._run, self._questions = self._run + 1, 0
        yield from super().request_many(requests)

    @property
    def best_payload(self) -> int:
        notes = self._payloads[self._run] if self._run < len(self._payloads) else []
        told = [payload for question, payload in notes if question <= self._questions]
        self._questions += 1
        return told[-1] if told else self.info.max_payload


class ReplayedBoard:
    """The board of a trace. It answers one request at a time, whatever window it had.

    `payloads`: for each run of requests the number of a question, and how long payloads may be from then on.
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError for what is no trace, or one in which no board says HELLO."""
        recording = Recording()
        for sighting in sightings(Trace(path).entries()):
            recording.take(sighting)
        if not recording.boot_ids:
            raise DataError(f"in the trace {path} no board answers HELLO, so nothing can be replayed; record it anew")
        self.payloads = recording.payloads
        self._path, self._boot_ids = path, recording.boot_ids
        used = [one for one in recording.exchanges if one.answer and one.answer.status != Status.BUSY]
        self._hellos = [one for one in used if one.request.type == MessageType.HELLO]
        self._answers = _by_key(used)
        self._left = Counter(one.epoch for one in used if _is_needed(one.request))
        self._said: dict[int, Frame] = {}  # the last answer, by type
        self._reader = FrameReader(encoded_size(1 << 20))
        self._requests, self._epoch, self._last = 0, 0, -1
        self._boot = b""

    def transport(self) -> Transport:
        return DirectTransport(self._receive)

    def _receive(self, data: bytes, now_s: float) -> bytes:
        frames = self._reader.feed(data)
        if self._boot:  # what came now was sent before the host knew
            boot, self._boot = self._boot, b""
            return boot
        answers = []
        for frame in frames:
            answers.append(self._answer(frame))
            if self._boot:
                break  # not sent yet, so that the host can use the answers before it
        return b"".join(answers)

    def _answer(self, request: Frame) -> bytes:
        self._requests += 1
        answer = self._hello() if request.type == MessageType.HELLO else self._recorded(request)
        if answer is None:
            self._restart(request)
            return b""
        return encode_frame(replace(answer, sequence=request.sequence))

    def _hello(self) -> Frame:
        """The next HELLO's answer, else the last one's, with the boot id that is in force."""
        later = (one for one in self._hellos if one.number > self._last and one.epoch >= self._epoch)
        exchange = next(later, self._hellos[-1])
        self._epoch = max(self._epoch, exchange.epoch)
        assert exchange.answer is not None
        info = BoardInfo.decode(exchange.answer.payload)
        info = replace(info, boot_id=self._boot_ids[self._epoch], window=1)
        return replace(exchange.answer, payload=info.encode())

    def _recorded(self, request: Frame) -> Frame | None:
        left = self._answers.get(_key(self._epoch, request))
        if not left:
            return self._said.get(request.type)
        exchange = left.popleft()
        self._last = max(self._last, exchange.number)
        self._left[self._epoch] -= _is_needed(request)
        if request.type in _SAID_AGAIN and exchange.answer:
            self._said[request.type] = exchange.answer
        return exchange.answer

    def _restart(self, request: Frame) -> None:
        """BOOT where the recorded board restarted here. Raises DataError where it did not."""
        if self._left[self._epoch] or self._epoch + 1 == len(self._boot_ids):
            raise self._not_recorded(request)
        self._epoch += 1
        boot = Boot(self._boot_ids[self._epoch])
        self._boot = encode_frame(Frame(MessageType.BOOT | ANSWER, 0, payload=boot.encode()))

    def _not_recorded(self, request: Frame) -> DataError:
        name = MessageType(request.type).name if request.type in set(MessageType) else f"type {request.type}"
        where = "" if request.tile == NO_TILE else f" on tile {request.tile}"
        known = any(_key(epoch, request) in self._answers for epoch in range(len(self._boot_ids)))
        return DataError(
            f"the recording {self._path} has no {'further ' if known else ''}answer to request {self._requests}: "
            f"{name}{where}, {len(request.payload)} bytes; replay it with the command, model, data, profile and seed "
            "that it was recorded with"
        )


def _key(epoch: int, request: Frame) -> _Key:
    return epoch, request.type, request.tile, _meant(request)


def _meant(request: Frame) -> bytes:
    """The payload, without what hosts draw anew each time: the id of a programming."""
    if request.type == MessageType.PROGRAM:
        with suppress(PayloadError):
            return replace(Program.decode(request.payload), id=0).encode()
    return request.payload


def _by_key(exchanges: Iterable[Exchange]) -> dict[_Key, deque[Exchange]]:
    found = defaultdict[_Key, deque[Exchange]](deque)
    for exchange in exchanges:
        found[_key(exchange.epoch, exchange.request)].append(exchange)
    return dict(found)


def _is_needed(request: Frame) -> bool:
    """Whether whoever does the same again asks this again, whatever the line is like."""
    return request.type not in OF_THE_LINK
