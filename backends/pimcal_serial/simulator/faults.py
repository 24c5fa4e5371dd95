"""What goes wrong on a line and at its end: a board that is wrapped in it looks like a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pimcal_serial.simulator.board import Board
from pimcal_serial.simulator.settings import BoardSettings, FaultSettings

_LONGEST = 2**21  # bytes without a zero that are still taken for one frame


class VirtualBoard(Protocol):
    """A board, faulty or not; see `Board`."""

    @property
    def rate(self) -> int | None: ...

    def start(self, now_s: float = 0.0) -> bytes: ...

    def receive(self, data: bytes, now_s: float) -> bytes: ...


class Unplugged(Exception):  # noqa: N818
    """The board is gone for `off_s`; `start` it then. What was on the line is lost."""

    def __init__(self, off_s: float) -> None:
        super().__init__(f"unplugged for {off_s} s")
        self.off_s = off_s


def virtual_board(settings: BoardSettings, boot_id: int = 1) -> VirtualBoard:
    """The board of the settings, with their faults where there are any."""
    board = Board(settings, boot_id)
    return board if settings.faults == FaultSettings() else FaultyBoard(board, settings.faults)


class FaultyBoard:
    """A board behind a bad line. `receive` raises Unplugged where the settings say so."""

    def __init__(self, board: Board, faults: FaultSettings) -> None:
        self._board, self._faults = board, faults
        self._generator = np.random.default_rng(faults.seed)
        self._inward, self._outward = (_BadLine(faults, self._generator) for _ in range(2))
        self._frames = 0
        self._waiting, self._late, self._stalled_until_s = b"", b"", 0.0

    @property
    def rate(self) -> int | None:
        return self._board.rate

    def start(self, now_s: float = 0.0) -> bytes:
        self._clear()
        return self._board.start(now_s)

    def receive(self, data: bytes, now_s: float) -> bytes:
        self._waiting += self._inward.disturb(data)
        if now_s < self._stalled_until_s:
            return b""
        late, self._late = self._late, b""
        return late + self._outward.disturb(self._work(now_s))

    def _clear(self) -> None:
        self._waiting, self._late, self._stalled_until_s = b"", b"", 0.0
        self._inward.clear()
        self._outward.clear()

    def _work(self, now_s: float) -> bytes:
        """Carry out what waits, until the board stalls."""
        sent = self._board.receive(b"", now_s)
        while b"\0" in self._waiting and now_s >= self._stalled_until_s:
            line, _, self._waiting = self._waiting.partition(b"\0")
            if line:
                sent += self._carry_out(line + b"\0", now_s)
        return sent

    def _carry_out(self, line: bytes, now_s: float) -> bytes:
        self._frames += 1
        if self._frames in self._faults.unplug_at:
            raise Unplugged(self._faults.unplugged_s)
        if self._frames in self._faults.reset_at:
            return self.start(now_s)
        answer = self._board.receive(line, now_s)
        if not self._stalls():
            return answer
        self._stalled_until_s = now_s + self._faults.stall_s
        self._late = self._outward.disturb(answer)
        return b""

    def _stalls(self) -> bool:
        return self._frames in self._faults.stall_at or _happens(self._faults.stalled, self._generator)


class _BadLine:
    """One direction of a line."""

    def __init__(self, faults: FaultSettings, generator: np.random.Generator) -> None:
        self._faults, self._generator = faults, generator
        self.clear()

    def clear(self) -> None:
        self._partial = self._held = b""

    def disturb(self, data: bytes) -> bytes:
        """What arrives of `data`; of an unfinished frame nothing until it is finished."""
        *ended, self._partial = (self._partial + data).split(b"\0")
        arrived = b"".join(self._frame(piece + b"\0") if piece else b"\0" for piece in ended)
        if len(self._partial) > _LONGEST:
            arrived, self._partial = arrived + self._partial, b""
        return self._with_byte_errors(arrived)

    def _frame(self, line: bytes) -> bytes:
        faults, generator = self._faults, self._generator
        if _happens(faults.lost, generator):
            return b""
        if _happens(faults.corrupted, generator):
            line = _changed(line, [int(generator.integers(len(line)))], generator)
        if _happens(faults.truncated, generator):
            line = line[: generator.integers(len(line))]
        if _happens(faults.duplicated, generator):
            line += line
        if _happens(faults.reordered, generator) and not self._held:
            self._held = line
            return b""
        held, self._held = self._held, b""
        return line + held

    def _with_byte_errors(self, data: bytes) -> bytes:
        if not self._faults.byte_errors or not data:
            return data
        hit = np.flatnonzero(self._generator.random(len(data)) < self._faults.byte_errors)
        return _changed(data, hit.tolist(), self._generator)


def _happens(share: float, generator: np.random.Generator) -> bool:
    return share > 0 and generator.random() < share


def _changed(data: bytes, positions: Sequence[int], generator: np.random.Generator) -> bytes:
    """With another byte at each position."""
    changed = bytearray(data)
    for position in positions:
        changed[position] ^= int(generator.integers(1, 256))
    return bytes(changed)
