"""A virtual board: bytes in, bytes out. It reads no clock and owns no port."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

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
from pimcal_serial.messages import U32, BoardInfo, Boot, Capability, HostInfo, Log, LogLevel, Readings, Stats
from pimcal_serial.simulator.array import temperature_c
from pimcal_serial.simulator.chip import Chip, no_payload, require
from pimcal_serial.simulator.settings import BoardSettings

_NOT_KEPT = (
    MessageType.HELLO,
    MessageType.ECHO,
    MessageType.SINK,
    MessageType.STATS,
    MessageType.READ,
    MessageType.BAUD,  # a repeated one switches again, after a fall-back
)
_BAUD_TRIAL_S = 1.0
_VERSION_PAUSE_S = 1.0
_ROOM = 4096  # bytes beyond max_payload that are still read, so that the frame can be refused
_NEEDED: dict[int, Capability] = {
    MessageType.BAUD: Capability.BAUD,
    MessageType.GET_TRIM: Capability.TRIMS,
    MessageType.SET_TRIM: Capability.TRIMS,
    MessageType.WRITE_BUFFER: Capability.INPUT_BUFFER,
    MessageType.MVM_GATHER: Capability.INPUT_BUFFER,
}


class Board:
    """The state machine of docs/protocol.md.

    Call `start` once, then `receive` with whatever arrives, and now and then with nothing: time-outs run on the times
    that are passed in. `rate` is the line rate that the host asked for, None until it asks. `boot_id` is
    the first start's; each start adds one.
    """

    def __init__(self, settings: BoardSettings, boot_id: int = 1) -> None:
        self.settings = settings
        self._boot_id = boot_id - 1
        self._capabilities = Capability(sum(Capability[name.upper()] for name in set(settings.capabilities)))
        self._now_s = 0.0
        self._reset()

    def start(self, now_s: float = 0.0) -> bytes:
        """Power on, or restart: everything is forgotten. Returns what the board sends unasked."""
        self._boot_id = (self._boot_id + 1) % 2**32
        self._now_s = now_s
        self._reset()
        sent = self._send(MessageType.BOOT | ANSWER, 0, payload=Boot(self._boot_id).encode())
        return sent + self._log(LogLevel.INFO, "started")

    def receive(self, data: bytes, now_s: float) -> bytes:
        """What the board sends upon `data`. A reset forgets what comes behind it."""
        self._now_s = max(self._now_s, now_s)
        self._fall_back_in_time()
        sent = []
        for frame in self._reader.feed(data):
            sent.append(self._handle(frame))
            if self._restarting:
                sent.append(self.start(self._now_s))
                return b"".join(sent)
        return b"".join((*sent, *map(self._refuse_version, self._reader.take_other_versions())))

    def _reset(self) -> None:
        settings = self.settings
        self.rate: int | None = None
        self._chip = Chip(settings, self._capabilities)
        self._reader = FrameReader(encoded_size(settings.max_payload + _ROOM), settings.protocol_version)
        self._answers: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._started_s = self._now_s
        self._restarting = False
        self._replayed = self._sent = 0
        self._version_refused_s = -math.inf
        self._baud_trial: tuple[float, int | None] | None = None  # until when, and the rate to go back to

    # frames

    def _handle(self, frame: Frame) -> bytes:
        self._baud_trial = None  # the host can be understood
        if frame.type & ANSWER:
            return b""  # our own, from a line that echoes
        key = frame.sequence, frame.crc
        if key in self._answers:
            self._replayed += 1
            self._sent += 1
            return self._answers[key]
        answer, log = self._answer(frame)
        if frame.type not in _NOT_KEPT:
            self._keep(key, answer)
        return answer + log

    def _answer(self, frame: Frame) -> tuple[bytes, bytes]:
        """The answer, and what the log says about it."""
        try:
            payload, status, log = self._carry_out(frame), Status.OK, b""
        except PayloadError as error:
            payload, status = b"", error.status
            log = self._log(LogLevel.WARNING, f"request {frame.sequence}: {error}")
        return self._send(frame.type | ANSWER, frame.sequence, frame.tile, status, payload), log

    def _carry_out(self, frame: Frame) -> bytes:
        require(len(frame.payload) <= self.settings.max_payload, Status.BAD_LENGTH, "longer than max_payload")
        needed = _NEEDED.get(frame.type)
        able = needed is None or needed in self._capabilities
        require(able, Status.UNKNOWN_TYPE, f"no request of type {frame.type}")
        own = _COMMANDS.get(frame.type)
        return own(self, frame) if own else self._chip.carry_out(frame, self._now_s)

    def _keep(self, key: tuple[int, int], answer: bytes) -> None:
        self._answers[key] = answer
        while len(self._answers) > self.settings.replay:
            self._answers.popitem(last=False)

    def _refuse_version(self, frame: Frame) -> bytes:
        if self._now_s - self._version_refused_s < _VERSION_PAUSE_S:
            return b""
        self._version_refused_s = self._now_s
        return self._send(MessageType.HELLO | ANSWER, frame.sequence, status=Status.VERSION)

    def _send(
        self, kind: int, sequence: int, tile: int = NO_TILE, status: int = Status.OK, payload: bytes = b""
    ) -> bytes:
        self._sent += 1
        return encode_frame(Frame(kind, sequence, tile, status, payload, self.settings.protocol_version))

    def _log(self, level: LogLevel, text: str) -> bytes:
        if not self.settings.log:
            return b""
        return self._send(MessageType.LOG | ANSWER, 0, payload=Log(level, text).encode())

    # the link

    def _hello(self, frame: Frame) -> bytes:
        HostInfo.decode(frame.payload)
        settings = self.settings
        same = BoardInfo.__dataclass_fields__.keys() & type(settings).model_fields.keys() - {"capabilities"}
        return BoardInfo(
            boot_id=self._boot_id,
            firmware="pimsim",
            capabilities=self._capabilities,
            **{name: getattr(settings, name) for name in same},
        ).encode()

    def _echo(self, frame: Frame) -> bytes:
        return frame.payload

    def _sink(self, frame: Frame) -> bytes:
        return U32(len(frame.payload)).encode()

    def _baud(self, frame: Frame) -> bytes:
        rate = U32.decode(frame.payload).value
        require(0 < rate <= self.settings.max_baud, Status.OUT_OF_RANGE, f"no rate {rate}")
        self._baud_trial = self._now_s + _BAUD_TRIAL_S, self.rate
        self.rate = rate
        return b""

    def _fall_back_in_time(self) -> None:
        if self._baud_trial is not None and self._now_s >= self._baud_trial[0]:
            self.rate = self._baud_trial[1]
            self._baud_trial = None

    def _restart(self, frame: Frame) -> bytes:
        no_payload(frame)
        self._restarting = True
        return b""

    def _read(self, frame: Frame) -> bytes:
        no_payload(frame)
        uptime_ms = int((self._now_s - self._started_s) * 1000)
        return Readings(temperature_c(self.settings.array, self._now_s), self.settings.supply_mv, uptime_ms).encode()

    def _stats(self, frame: Frame) -> bytes:
        no_payload(frame)
        reader = self._reader
        counters = self._replayed, self._chip.multiplied, self._chip.programmed, self._sent
        return Stats(reader.received, reader.dropped, reader.other_version, *counters).encode()


_COMMANDS: dict[int, Callable[[Board, Frame], bytes]] = {
    MessageType.HELLO: Board._hello,
    MessageType.ECHO: Board._echo,
    MessageType.SINK: Board._sink,
    MessageType.READ: Board._read,
    MessageType.STATS: Board._stats,
    MessageType.BAUD: Board._baud,
    MessageType.RESET: Board._restart,
}
