"""Requests and answers over a transport: many under way at once, repeated where they get lost, recovered where the link
does. See docs/protocol.md for the rules."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random, SystemRandom

from pimcal.errors import DeviceUnavailableError
from pimcal.shown import one_line
from pimcal_serial.frames import (
    ANSWER,
    Frame,
    FrameReader,
    MessageType,
    PayloadError,
    Status,
    encode_frame,
    encoded_size,
)
from pimcal_serial.greeting import board_info, not_greeted
from pimcal_serial.messages import BoardInfo, Boot, HostInfo, Log
from pimcal_serial.requests import BoardRestartedError, RefusedError, Request
from pimcal_serial.transport import LinkError, Transport

logger = logging.getLogger("pimcal.serial")

_LARGEST_SEQUENCE = 0xFFFF
_LARGEST_FRAME = encoded_size(1 << 20)  # before HELLO has told
_BITS_PER_BYTE = 10  # 8N1
_REQUEST_OVERHEAD = encoded_size(16)  # of a product: its frame, and the fixed part of its payload
_SUPPOSED_ERRORS, _SUPPOSED_BYTES = 0.5, 100_000
_REPEATS = 3  # silences before the line is flushed and the board greeted anew
_BUSY_PAUSE_S = 0.01
_LARGEST_BACKOFF_S = 1.0
_LOG_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)


@dataclass(frozen=True, slots=True)
class Timing:
    """Time-outs. `baud` None: the line takes no time. `margin_s`: what host, adapters and network may add.

    `connect_s`: how long a board may take to answer the first time. `reconnect_s`: how long a lost one is waited for.
    """

    baud: int | None = None
    margin_s: float = 0.25
    connect_s: float = 3.0
    reconnect_s: float = 10.0


@dataclass(slots=True)
class LinkCounters:
    """What the link has done since the session began."""

    bytes_sent: int = 0
    bytes_received: int = 0
    repeats: int = 0
    reopened: int = 0
    restarts: int = 0


@dataclass(slots=True)
class _UnderWay:
    request: Request
    encoded: bytes
    size: int  # bytes on the line, there and back
    last_sent: int = 0  # number of the transmission
    others: int = 0  # requests that the board may carry out between this one and its repetition
    answer: Frame | None = None


class Session:
    """An open board. `connect` opens its port; it is called again when the port is lost."""

    def __init__(
        self,
        connect: Callable[[], Transport],
        timing: Timing | None = None,
        *,
        name: str = "the board",
        host: str = "pimcal",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Random | None = None,
    ) -> None:
        """Raises DeviceUnavailableError: nobody answers, no PIM board, another version of the protocol."""
        self.counters = LinkCounters()
        self._connect, self._timing, self._name, self._host = connect, timing or Timing(), name, host
        self._clock, self._sleep = clock, sleep
        self._opening_baud = self._timing.baud
        # A program that is started again must not meet its own old answers in the board's replay cache.
        self._sequence = (random or SystemRandom()).randrange(_LARGEST_SEQUENCE)
        self._transport = connect()
        self._outgoing = bytearray()
        self._reader = FrameReader(_LARGEST_FRAME)
        self._transmissions = 0
        self._probe: tuple[int, int] | None = None  # sequence number, and that of the transmission it stands behind
        try:
            self.info = self._greet(self._timing.connect_s)
        except LinkError as error:
            self._transport.close()
            raise self._lost(f"the port failed ({error})") from error
        except BaseException:
            self._transport.close()
            raise
        self._reader = FrameReader(encoded_size(self.info.max_payload))

    @property
    def baud(self) -> int | None:
        """The line's rate at present, None where it takes no time."""
        return self._timing.baud

    @property
    def frames_dropped(self) -> int:
        """What was received and was no frame."""
        return self._reader.dropped

    @property
    def best_payload(self) -> int:
        """The payload that loses least to overhead and repetitions: sqrt(overhead / share of wrong bytes).

        Until the link has shown what it is like, half an error in 100 kB is supposed.
        """
        counters = self.counters
        seen = counters.bytes_sent + counters.bytes_received
        errors = (counters.repeats + _SUPPOSED_ERRORS) / (seen + _SUPPOSED_BYTES)
        return min(self.info.max_payload, math.isqrt(round(_REQUEST_OVERHEAD / errors)))

    def request(self, request: Request) -> bytes:
        """One request's answer."""
        (payload,) = self.request_many([request])
        return payload

    def request_many(self, requests: Iterable[Request]) -> Iterator[bytes]:
        """The payloads of the answers, in the order of the requests; several requests are under way at once.

        Raises BoardRestartedError, RefusedError, DeviceUnavailableError (device lost, hardware fault).
        """
        waiting, under_way = iter(requests), OrderedDict[int, _UnderWay]()
        self._clear()
        request, probed = next(waiting, None), False
        while request or under_way:
            while request and self._has_room(under_way) and request.ready():
                self._start(request, under_way)
                request = next(waiting, None)
            if not (request or probed) and self.counters.repeats and self._has_room(under_way):
                probed = True  # nothing comes behind the last requests that would tell that they got lost
                self._send_probe()
            assert under_way, "a request waits for an answer that cannot come"
            self._await_answer(under_way)
            yield from self._finished(under_way)

    def hello(self) -> BoardInfo:
        """Ask who is there. Raises BoardRestartedError where the boot id is a new one."""
        self._recover(lambda: self._greet(self._silence_s(0, 1) * _REPEATS))
        return self.info

    def set_baud(self, baud: int) -> None:
        """Both sides change to another line rate; where nothing gets through at it, both are at the old one again.

        Raises RefusedError where the board does not have the rate, DeviceUnavailableError where it does not work.
        """
        self.request(Request(MessageType.BAUD, baud.to_bytes(4, "little")))
        try:
            self._transport.set_baud(baud)
            info = self._greet(self._silence_s(0, 1) * _REPEATS)
        except (LinkError, DeviceUnavailableError) as error:
            self._reopen(error)  # at the old rate, to which the board goes back by itself
            raise DeviceUnavailableError(
                f"{self._name} cannot be reached at {baud} bit/s ({error}); both sides are at the old rate again"
            ) from error
        self._timing = replace(self._timing, baud=baud)
        self._adopt(info)

    def close(self) -> None:
        """Leave the line between two frames, whatever was interrupted."""
        with suppress(LinkError):
            self._transport.exchange(b"\0", 0.0)
        self._transport.close()

    # the window

    def _has_room(self, under_way: OrderedDict[int, _UnderWay]) -> bool:
        """Whether the board would still know its answers to all that is under way after one more request."""
        replay = self.info.replay
        open_ones = [entry for entry in under_way.values() if entry.answer is None]
        # Half of the replay cache is for older requests that may have to be repeated, and come later then.
        fits = len(open_ones) + bool(self._probe) < min(self.info.window, (replay + 1) // 2)
        return fits and all(entry.others + 1 < replay for entry in open_ones)

    def _start(self, request: Request, under_way: OrderedDict[int, _UnderWay]) -> None:
        sequence = self._next_sequence()
        encoded = encode_frame(Frame(request.kind, sequence, request.tile, payload=request.payload))
        open_ones = [entry for entry in under_way.values() if entry.answer is None]
        entry = _UnderWay(request, encoded, len(encoded) + encoded_size(request.answer_bytes), others=len(open_ones))
        for older in open_ones:
            older.others += 1
        under_way[sequence] = entry
        self._send(entry)

    def _next_sequence(self) -> int:
        self._sequence = self._sequence % _LARGEST_SEQUENCE + 1
        return self._sequence

    def _send(self, entry: _UnderWay) -> None:
        self._transmissions += 1
        entry.last_sent = self._transmissions
        self._outgoing += entry.encoded

    def _repeat(self, entries: Iterable[_UnderWay]) -> None:
        for entry in entries:
            self.counters.repeats += 1
            self._send(entry)

    def _finished(self, under_way: OrderedDict[int, _UnderWay]) -> Iterator[bytes]:
        """Answers from the front of the queue, as far as they are there."""
        while under_way:
            entry = next(iter(under_way.values()))
            if entry.answer is None:
                return
            under_way.popitem(last=False)
            yield self._payload(entry.request, entry.answer)

    def _payload(self, request: Request, answer: Frame) -> bytes:
        if answer.status == Status.OK:
            return answer.payload
        if answer.status == Status.FAULT:
            told = one_line(answer.payload.decode(errors="replace"))
            raise DeviceUnavailableError(f"{self._name} reports a hardware fault in {request.kind.name}: {told}")
        if answer.status == Status.NOT_PROGRAMMED:
            self.hello()  # its BOOT may have been lost
        raise RefusedError(request, answer.status)

    # waiting

    def _await_answer(self, under_way: OrderedDict[int, _UnderWay]) -> None:
        """Until at least one answer has come; what is lost is repeated meanwhile."""
        silences = 0
        while True:
            open_ones = [entry for entry in under_way.values() if entry.answer is None]
            if self._listen(under_way, self._clock() + self._silence_s(sum(e.size for e in open_ones), len(open_ones))):
                return
            silences += 1
            if silences > _REPEATS:
                self.hello()
                silences = 0
            self._clear()
            self._repeat(open_ones)

    def _silence_s(self, size: int, requests: int) -> float:
        """How long nothing may come while `requests` with `size` bytes, there and back, are under way."""
        line_s = size * _BITS_PER_BYTE / self._timing.baud if self._timing.baud else 0.0
        command_ms = self.info.command_ms if hasattr(self, "info") else 0
        return self._timing.margin_s + line_s + requests * command_ms / 1000

    def _listen(self, under_way: OrderedDict[int, _UnderWay], deadline_s: float) -> bool:
        """Whether an answer came before the deadline."""
        while True:
            try:
                frames = self._exchange(deadline_s - self._clock())
            except LinkError as error:
                self._reopen(error)
                return False
            answered = [self._take(frame, under_way) for frame in frames]
            if any(answered):
                return True
            if self._clock() >= deadline_s:
                return False

    def _exchange(self, timeout_s: float) -> list[Frame]:
        taken, received = self._transport.exchange(self._outgoing, timeout_s)
        del self._outgoing[:taken]
        self.counters.bytes_sent += taken
        self.counters.bytes_received += len(received)
        return self._reader.feed(received)

    def _take(self, frame: Frame, under_way: OrderedDict[int, _UnderWay]) -> bool:
        """Note one frame; whether it answers a request."""
        if self._is_unsolicited(frame):
            return False
        if self._probe is not None and frame.sequence == self._probe[0]:
            answered, self._probe = self._probe[1], None
            self._repeat_lost(under_way, answered)
            return False
        entry = under_way.get(frame.sequence)
        if entry is None or entry.answer is not None or frame.type != entry.request.kind | ANSWER:
            return False
        if frame.status == Status.BUSY:
            self._sleep(_BUSY_PAUSE_S)
            self._repeat([entry])
            return True
        entry.answer = frame
        self._repeat_lost(under_way, entry.last_sent)
        return True

    def _repeat_lost(self, under_way: OrderedDict[int, _UnderWay], answered: int) -> None:
        """Answers come in the order of the requests: what was sent before an answered one and has no answer is lost.

        A probe behind the repeated ones tells soon whether they got lost again; else only a time-out would.
        """
        if self._probe is not None and self._probe[1] < answered:
            self._probe = None  # lost itself
        lost = [entry for entry in under_way.values() if entry.answer is None and entry.last_sent < answered]
        if not lost:
            return
        self._repeat(lost)
        self._send_probe()

    def _send_probe(self) -> None:
        """Ask for an echo: its answer tells that what was sent before it and has no answer is lost."""
        self._transmissions += 1
        self._probe = self._next_sequence(), self._transmissions
        self._outgoing += encode_frame(Frame(MessageType.ECHO, self._probe[0]))

    def _is_unsolicited(self, frame: Frame) -> bool:
        """Take note of LOG and BOOT. Raises BoardRestartedError upon a new boot id."""
        with suppress(PayloadError):
            if frame.type == MessageType.LOG | ANSWER:
                log = Log.decode(frame.payload)
                logger.log(_LOG_LEVELS[min(log.level, 3)], "%s: %s", self._name, one_line(log.text))
                return True
            if frame.type == MessageType.BOOT | ANSWER:
                self._check_boot_id(Boot.decode(frame.payload).boot_id)
                return True
        return False

    def _check_boot_id(self, boot_id: int) -> None:
        if boot_id == self.info.boot_id:
            return
        logger.info("%s has restarted", self._name)
        self.counters.restarts += 1
        # What else it says of itself is the same board's; `_greet` sees to it after the port was opened anew.
        self.info = replace(self.info, boot_id=boot_id)
        raise BoardRestartedError(f"{self._name} has restarted meanwhile; check its supply, then start again")

    def _clear(self) -> None:
        """Drop what is half sent and half received; the zero ends a frame that an interruption has cut."""
        self._outgoing[:] = b"\0"
        self._probe = None

    # recovery

    def _recover(self, greet: Callable[[], BoardInfo]) -> None:
        try:
            info = greet()
        except (LinkError, DeviceUnavailableError) as error:
            self._reopen(error)
        else:
            self._adopt(info)

    def _reopen(self, reason: Exception) -> None:
        """Open the port until the same board answers. Raises DeviceUnavailableError, or as `_adopt`."""
        logger.warning("%s does not answer (%s); opening its port again", self._name, reason)
        deadline_s, pause_s = self._clock() + self._timing.reconnect_s, 0.05
        self._transport.close()
        while True:
            try:
                self._transport = self._connect()
                info = self._greet_anew(max(0.0, min(self._timing.connect_s, deadline_s - self._clock())))
                break
            except (LinkError, DeviceUnavailableError) as error:
                self._transport.close()
                if self._clock() + pause_s > deadline_s:
                    raise self._lost(str(error)) from error
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LARGEST_BACKOFF_S)
        self.counters.reopened += 1
        logger.warning("%s is back", self._name)
        self._adopt(info)

    def _greet_anew(self, patience_s: float) -> BoardInfo:
        """Greet a board that may have restarted, and then has its first rate, or else the one that it was given."""
        given = self._timing
        if given.baud == self._opening_baud:
            return self._greet(patience_s)
        try:
            self._timing = replace(given, baud=self._opening_baud)
            return self._greet(patience_s / 2)
        except DeviceUnavailableError:
            self._timing = given
            self._transport.set_baud(given.baud or 0)
            return self._greet(patience_s / 2)

    def _adopt(self, info: BoardInfo) -> None:
        if info.serial_number != self.info.serial_number:
            raise DeviceUnavailableError(
                f"{self._name} is now {one_line(info.serial_number)}, it was {one_line(self.info.serial_number)}; "
                "plug the first one in"
            )
        if replace(info, boot_id=0) != replace(self.info, boot_id=0):
            raise DeviceUnavailableError(
                f"{self._name} says something else of itself than before (tiles, formats or firmware); start again"
            )
        self._check_boot_id(info.boot_id)

    def _lost(self, why: str) -> DeviceUnavailableError:
        return DeviceUnavailableError(f"device lost: {self._name}: {why}; check its cable and power, then start again")

    # HELLO

    def _greet(self, patience_s: float) -> BoardInfo:
        """HELLO until there is an answer. Raises DeviceUnavailableError or LinkError."""
        reader, heard = FrameReader(_LARGEST_FRAME), 0
        deadline_s = self._clock() + patience_s
        while True:
            sequence, payload = self._next_sequence(), HostInfo(self._host).encode()
            self._outgoing[:] = b"\0" + encode_frame(Frame(MessageType.HELLO, sequence, payload=payload))
            until_s = self._clock() + self._silence_s(2 * encoded_size(255), 1)
            while self._clock() < until_s:
                taken, received = self._transport.exchange(self._outgoing, until_s - self._clock())
                del self._outgoing[:taken]
                heard += len(received)
                for frame in (*reader.feed(received), *reader.take_other_versions()):
                    if frame.type == MessageType.HELLO | ANSWER and frame.sequence == sequence:
                        return board_info(self._name, frame)
            if self._clock() >= deadline_s:
                raise not_greeted(self._name, heard, reader)
