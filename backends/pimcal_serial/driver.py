"""Integers onto a board's tiles and products back, whatever happens to the link meanwhile. Knows nothing of torch."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pimcal.errors import DataError, DeviceUnavailableError
from pimcal_serial.frames import MessageType, PayloadError
from pimcal_serial.inputs import InputFormat, Int8s, Int32s, OutputFormat, output_size
from pimcal_serial.messages import Mvm, MvmResult, Program, ProgramResult, Readback, ReadbackResult, Readings
from pimcal_serial.products import (
    input_format,
    largest,
    output_format,
    program_rows,
    readback_rows,
    spans,
    vector_sizes,
)
from pimcal_serial.session import BoardRestartedError, RefusedError, Request, Session

logger = logging.getLogger("pimcal.serial")

T = TypeVar("T")

_MOST_RESTARTS = 10  # of the board during one operation
_LARGEST_STEP = 2**24
_SAMPLE = 256  # vectors that the first step is estimated from
_HEADROOM = 1.1  # of the first step over the largest exact product: the array errs
_SATURATED_SHARE = 1e-3  # of the outputs that may be clipped before the step is doubled


@dataclass(slots=True)
class _Held:
    """A tile's weights as they were sent, and how its outputs travel."""

    weights: Int8s
    step: int | None = None
    form: OutputFormat | None = None


class Driver:
    """A board's tiles. After a restart of the board the weights are programmed again."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._held: dict[int, _Held] = {}
        self._stale = False
        self._programmings: dict[int, int] = {}  # the last programming's id, by tile

    def shape(self, tile: int) -> tuple[int, int] | None:
        """Rows and columns of what was programmed, None where nothing was."""
        held = self._held.get(tile)
        return None if held is None else (held.weights.shape[0], held.weights.shape[1])

    def program(self, tile: int, weights: Int8s) -> None:
        """Write `weights` [rows, cols] to a tile. Raises DataError for codes that the board does not have."""
        _check_codes(f"tile {tile}: weights", weights, self.session.info.weight_bits)
        self._held.pop(tile, None)
        self._surviving(lambda: self._write(tile, weights))
        self._held[tile] = _Held(weights)

    def adopt(self, tile: int) -> None:
        """Take over what somebody else has programmed. Raises RefusedError where the tile holds nothing."""
        self._held[tile] = _Held(self.readback(tile))

    def multiply(self, tile: int, inputs: Int8s) -> Int32s:
        """`inputs` [n, rows] times a programmed tile: [n, cols], in product units (converter's codes times step)."""
        _check_codes(f"tile {tile}: inputs", inputs, self.session.info.input_bits)
        held = self._held[tile]
        self._plan(held, inputs)
        outputs = np.empty((len(inputs), held.weights.shape[1]), np.int32)
        form = input_format(self.session.info, inputs)
        done = 0

        def go_on() -> None:
            nonlocal done
            while done < len(inputs):
                done = self._run(tile, held, inputs, form, outputs, done)

        self._surviving(go_on)
        return outputs

    def readback(self, tile: int) -> Int8s:
        """The weights that the board holds, [rows, cols]. Raises RefusedError where it holds none."""
        return self._surviving(lambda: self._read_back(tile))

    def readings(self) -> Readings:
        """Temperature, supply, uptime."""
        return self._surviving(lambda: Readings.decode(self.session.request(Request(MessageType.READ))))

    # surviving restarts of the board

    def _surviving(self, operation: Callable[[], T]) -> T:
        """What `operation` returns; it is run again after a restart of the board."""
        for _ in range(_MOST_RESTARTS):
            try:
                if self._stale:
                    self._write_all()
                return operation()
            except BoardRestartedError:
                self._stale = True
            except PayloadError as error:
                raise DeviceUnavailableError(
                    f"the board's answer makes no sense: {error}; update its firmware"
                ) from error
        raise DeviceUnavailableError("the board restarts again and again; check its supply")

    def _write_all(self) -> None:
        if self._held:
            logger.warning("the board has restarted; %d tiles are programmed again", len(self._held))
        for tile, held in self._held.items():
            self._write(tile, held.weights)
        self._stale = False

    # weights

    def _write(self, tile: int, weights: Int8s) -> None:
        rows, cols = weights.shape
        number = self._next_programming(tile, weights)
        count = program_rows(self.session.info, cols)
        parts = (Program(rows, first, number, weights[first : first + count]) for first in range(0, rows, count))
        requests = (Request(MessageType.PROGRAM, part.encode(), tile, answer_bytes=2) for part in parts)
        missing = [ProgramResult.decode(payload).missing for payload in self.session.request_many(requests)]
        if min(missing):
            self.session.hello()  # it may have restarted in between
            raise DeviceUnavailableError(
                f"tile {tile} lacks {min(missing)} rows after programming; update its firmware"
            )

    def _next_programming(self, tile: int, weights: Int8s) -> int:
        """An id that differs from that of the tile's last programming, even if somebody else did that."""
        if tile not in self._programmings:
            marker = Program(weights.shape[0], 0, 0, weights[:1])
            with suppress(RefusedError):  # another shape under this id: then it was the last one's
                self.session.request(Request(MessageType.PROGRAM, marker.encode(), tile, answer_bytes=2))
        number = (self._programmings.get(tile, 0) + 1) % 256
        self._programmings[tile] = number
        return number

    def _read_back(self, tile: int) -> Int8s:
        rows, cols = self._asked_shape(tile)
        count = readback_rows(self.session.info, cols)
        parts = [(first, min(count, rows - first)) for first in range(0, rows, count)]
        requests = [Request(MessageType.READBACK, Readback(*part).encode(), tile, 4 + part[1] * cols) for part in parts]
        answers = self.session.request_many(requests)
        results = [ReadbackResult.decode(payload, part[1]) for payload, part in zip(answers, parts, strict=True)]
        return np.concatenate([result.weights for result in results])

    def _asked_shape(self, tile: int) -> tuple[int, int]:
        payload = self.session.request(Request(MessageType.READBACK, Readback(0, 0).encode(), tile, answer_bytes=4))
        return int.from_bytes(payload[:2], "little"), int.from_bytes(payload[2:4], "little")

    # products

    def _plan(self, held: _Held, inputs: Int8s) -> None:
        """Choose how outputs travel, and for a board with an output converter the first step."""
        board = self.session.info
        if held.form is None:
            bound = int(np.abs(held.weights.astype(np.int64)).sum(0).max()) * largest(board.input_bits)
            held.form = output_format(board, bound)
        if held.step is None and (not board.output_bits or inputs.any()):
            held.step = _first_step(held.weights, inputs, board.output_bits) if board.output_bits else 1

    def _run(self, tile: int, held: _Held, inputs: Int8s, form: InputFormat, outputs: Int32s, done: int) -> int:
        """Products from vector `done` on, until all are there or too many are clipped; returns how many are done."""
        board, cols = self.session.info, held.weights.shape[1]
        output_form, step = held.form or OutputFormat.INT32, held.step or 1
        cuts = deque[tuple[int, int]]()  # of the requests under way
        sizes = vector_sizes(inputs[done:], form)

        def requests() -> Iterator[Request]:
            for first, last in spans(board, sizes, cols, output_form, lambda: self.session.best_payload):
                cuts.append((done + first, done + last))
                yield self._request(tile, inputs[slice(*cuts[-1])], form, output_form, step, cols)

        for payload in self.session.request_many(requests()):
            first, last = cuts.popleft()
            result = MvmResult.decode(payload, last - first, cols, output_form, board.output_bits)
            if self._clips_too_much(held, result):
                return first
            np.multiply(result.outputs, step, out=outputs[first:last])
        return len(inputs)

    def _request(
        self, tile: int, vectors: Int8s, form: InputFormat, output_form: OutputFormat, step: int, cols: int
    ) -> Request:
        answer_bytes = 4 + output_size(len(vectors), cols, output_form, self.session.info.output_bits)
        return Request(MessageType.MVM, Mvm(vectors, form, output_form, step).encode(), tile, answer_bytes)

    def _clips_too_much(self, held: _Held, result: MvmResult) -> bool:
        """Whether a wider format or a larger step is needed; takes it."""
        if not result.saturated:
            return False
        if not self.session.info.output_bits:
            if held.form == OutputFormat.INT32:
                return False
            held.form = OutputFormat.INT32
            return True
        step = held.step or 1
        if result.saturated <= _SATURATED_SHARE * result.outputs.size or step >= _LARGEST_STEP:
            return False
        held.step = min(2 * step, _LARGEST_STEP)
        return True


def _first_step(weights: Int8s, inputs: Int8s, output_bits: int) -> int:
    """The step with which an exact array's largest product just fits the converter."""
    sample = inputs[:: max(1, len(inputs) // _SAMPLE)].astype(np.float32)
    peak = float(np.abs(sample @ weights.astype(np.float32)).max())
    return min(_LARGEST_STEP, max(1, math.ceil(_HEADROOM * peak / largest(output_bits))))


def _check_codes(what: str, codes: Int8s, bits: int) -> None:
    top = largest(bits)
    if codes.size and not -top <= codes.min() <= codes.max() <= top:
        raise DataError(f"{what} must lie in -{top} to {top}, the board's {bits} bits")
