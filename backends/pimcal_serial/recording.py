"""What a trace means: the frames on the line, and which answer the host used for which of its requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from pimcal_serial.frames import ANSWER, VERSION, Frame, MessageType, PayloadError, Status, decode_frame
from pimcal_serial.messages import BoardInfo, Boot
from pimcal_serial.trace import NOTE, OPENED, RECEIVED, SENT, Entry, Kind

ANSWERS = "answers used"  # at the end of a run of requests: how many
PAYLOAD = "payload"  # the index of a question in its run, and how long payloads may be from it on
_REUSED_AFTER = 1 << 15  # requests later, a sequence number that comes again is no repetition
OF_THE_LINK = (MessageType.HELLO, MessageType.ECHO, MessageType.BAUD)  # the session asks them by itself


@dataclass(frozen=True, slots=True)
class Sighting:
    """A frame on the line, `size` bytes with its zero; or what is none, an event or a note: `text` tells."""

    time_s: float
    kind: Kind
    size: int = 0
    frame: Frame | None = None
    text: str = ""
    values: tuple[int, ...] = ()


def sightings(entries: Iterable[Entry]) -> Iterator[Sighting]:
    """Frames, broken pieces, events and notes, in the order in which they were complete."""
    partial: dict[Kind, bytes] = {SENT: b"", RECEIVED: b""}
    time_s = 0.0
    for entry in entries:
        time_s = entry.time_s
        if entry.kind in partial:
            *ended, partial[entry.kind] = (partial[entry.kind] + entry.data).split(b"\0")
            yield from (_sighting(time_s, entry.kind, piece) for piece in ended if piece)
            continue
        if entry.text == OPENED:
            yield from _unfinished(time_s, partial)
        yield Sighting(time_s, entry.kind, text=entry.text, values=entry.values)
    yield from _unfinished(time_s, partial)


def _sighting(time_s: float, kind: Kind, piece: bytes) -> Sighting:
    try:
        return Sighting(time_s, kind, len(piece) + 1, decode_frame(piece))
    except ValueError as error:
        return Sighting(time_s, kind, len(piece) + 1, text=str(error))


def _unfinished(time_s: float, partial: dict[Kind, bytes]) -> Iterator[Sighting]:
    for kind, piece in partial.items():
        if piece:
            yield Sighting(time_s, kind, len(piece), text="cut off")
        partial[kind] = b""


@dataclass(slots=True)
class Exchange:
    """A request with the answer that the host used, None where it used none.

    `number` is its place among all requests, `epoch` how many restarts of the board the host knew of when it asked (of
    a HELLO, when it was answered).
    """

    number: int
    epoch: int
    request: Frame
    answer: Frame | None = None


@dataclass(slots=True)
class Recording:
    """The requests of a session, each once, however often it was sent; feed it all sightings, in their order.

    `boot_ids` are those that the host came to know. `payloads` are the notes PAYLOAD, for each run of requests. The
    rules are those of `Session`: which answers it takes, and what it takes for a restart.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    boot_ids: list[int] = field(default_factory=list)
    payloads: list[list[tuple[int, ...]]] = field(default_factory=lambda: [[]])
    repeats: int = 0
    _run: list[Exchange] = field(default_factory=list)
    _latest: dict[int, Exchange] = field(default_factory=dict)  # by sequence number
    _greeting: Exchange | None = None  # the HELLO under way; the host heeds nothing else meanwhile

    @property
    def epoch(self) -> int:
        return max(0, len(self.boot_ids) - 1)

    def take(self, sighting: Sighting) -> bool:
        """Take note of a sighting; whether it was the repetition of a request."""
        frame = sighting.frame
        if sighting.kind == NOTE:
            self._note(sighting.text, sighting.values)
        elif frame is not None and frame.version == VERSION:
            if sighting.kind == SENT:
                return self._ask(frame)
            self._hear(frame)
        return False

    def _note(self, text: str, values: tuple[int, ...]) -> None:
        if text == PAYLOAD and len(values) == 2:
            self.payloads[-1].append(values)
        elif text == ANSWERS and len(values) == 1:
            self._end_run(values[0])

    def _end_run(self, used: int) -> None:
        """Forget answers that came too late, and heed none that is still to come: the host turns to something else.

        It may do so because of the first of these, where that is a refusal.
        """
        run = [one for one in self._run if one.answer is None or one.answer.status != Status.BUSY]
        for place, exchange in enumerate(run[used:]):
            if place or (exchange.answer and exchange.answer.status == Status.OK):
                exchange.answer = None
        for exchange in self._run:
            self._latest.pop(exchange.request.sequence, None)
        self._run.clear()
        self.payloads.append([])

    def _ask(self, request: Frame) -> bool:
        before = self._latest.get(request.sequence)
        if before and before.request == request and len(self.exchanges) - before.number < _REUSED_AFTER:
            self.repeats += 1
            return True
        exchange = Exchange(len(self.exchanges), self.epoch, request)
        self.exchanges.append(exchange)
        self._latest[request.sequence] = exchange
        if request.type not in OF_THE_LINK:
            self._run.append(exchange)
        elif request.type == MessageType.HELLO:
            self._greeting = exchange
        return False

    def _hear(self, frame: Frame) -> None:
        exchange = self._latest.get(frame.sequence)
        if frame.type == MessageType.BOOT | ANSWER:
            self._boot(frame)
        elif exchange and not exchange.answer and frame.type == exchange.request.type | ANSWER:
            self._answer(exchange, frame)

    def _answer(self, exchange: Exchange, answer: Frame) -> None:
        if exchange is self._greeting:
            with suppress(PayloadError):
                self._know(BoardInfo.decode(answer.payload).boot_id)
                exchange.answer, exchange.epoch, self._greeting = answer, self.epoch, None
        elif self._greeting is None and exchange.epoch == self.epoch:
            exchange.answer = answer

    def _boot(self, frame: Frame) -> None:
        with suppress(PayloadError):
            boot_id = Boot.decode(frame.payload).boot_id
            if self._greeting is None and self.boot_ids:
                self._know(boot_id)

    def _know(self, boot_id: int) -> None:
        if not self.boot_ids or boot_id != self.boot_ids[-1]:
            self.boot_ids.append(boot_id)
