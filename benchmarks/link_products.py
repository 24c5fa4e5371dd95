"""Random products through every peer against an integer reference, which shares no code with the link."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from link_peers import PEERS, Peer, connected
from numpy.typing import NDArray

from pimcal_serial.frames import MessageType
from pimcal_serial.inputs import InputFormat, OutputFormat, output_size
from pimcal_serial.messages import Loop, Mvm, MvmGather, MvmResult, Program, ProgramResult, WriteBuffer
from pimcal_serial.requests import Request
from pimcal_serial.session import Session

Array = NDArray[Any]

OUTPUT_BITS = (0, 8, 11)  # of the converter; 0: none
PRODUCTS_A_MATRIX = 25
BUFFER = 2048  # values of the input buffer that are used
ANSWER = 3000  # bytes of an answer at most


def reference(weights: Array, inputs: Array, step: int, bits: int, form: OutputFormat) -> tuple[Array, int]:
    """Outputs and how many were clipped: sums in steps, halves rounded away from zero, in the converter's range."""
    sums = inputs.astype(np.int64) @ weights.astype(np.int64)
    codes = np.where(sums < 0, -1, 1) * ((2 * abs(sums) + step) // (2 * step))
    largest = 2 ** (bits - 1) - 1 if bits else 2**15 - 1 if form == OutputFormat.INT16 else 2**31 - 1
    clipped = np.clip(codes, -largest if bits else -largest - 1, largest)
    return clipped, int((clipped != codes).sum())


@dataclass
class Random:
    """Requests with random shapes, formats and values; `checks` say of each answer whether it is right."""

    seed: int
    bits: int  # of the output converter
    tiles: int = 4
    checks: deque[Callable[[bytes], bool]] = field(default_factory=deque)
    counted: dict[str, int] = field(default_factory=lambda: {"gathered": 0, "parts of a tile": 0, "clipped": 0})

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng((self.seed, self.bits))
        self._buffer = np.zeros(BUFFER, np.int8)
        self._programmings = 0

    def requests(self, products: int) -> Iterator[Request]:
        """Matrices and products with them; may be called again, for more on the same board."""
        while products > 0:
            tile, weights = self._programmings % self.tiles, self._matrix()
            yield from self._programming(tile, weights)
            for _ in range(min(products, PRODUCTS_A_MATRIX)):
                if self._chance(0.2):
                    yield from self._gathered(tile, weights)
                else:
                    yield self._product(tile, weights)
            products -= PRODUCTS_A_MATRIX

    def _alone(self) -> bool:
        """Whether everything before the last request is answered; what may overtake nothing waits for that."""
        return len(self.checks) == 1

    def _chance(self, share: float) -> bool:
        return bool(self._generator.random() < share)

    def _between(self, first: int, last: int) -> int:
        return int(self._generator.integers(first, last + 1))

    def _values(self, shape: tuple[int, ...], largest: int = 127) -> Array:
        values = self._generator.integers(-largest, largest + 1, shape) * (
            self._generator.random(shape) < self._generator.choice([0.1, 0.5, 1.0])
        )
        return values.astype(np.int8)

    def _matrix(self) -> Array:
        """Of any shape up to the largest tile, most of them small."""
        rows, cols = (round(256 ** self._generator.random()) for _ in range(2))
        return self._values((256, 256) if self._chance(0.02) else (rows, cols))

    def _programming(self, tile: int, weights: Array) -> Iterator[Request]:
        rows, cols = weights.shape
        self._programmings += 1
        each = max(1, ANSWER // cols)
        for first in range(0, rows, each):
            part = Program(rows, first, self._programmings % 256, weights[first : first + each])
            self.checks.append(_lacking(max(0, rows - first - each)))
            yield Request(MessageType.PROGRAM, part.encode(), tile, answer_bytes=2, ready=self._alone)
        self.checks.append(lambda payload: payload == b"done")
        yield Request(MessageType.ECHO, b"done", answer_bytes=4, ready=self._alone)

    def _output(self) -> tuple[OutputFormat, int]:
        if not self.bits:
            return OutputFormat(self._between(0, 1)), 1
        return OutputFormat(self._between(0, 2)), int(self._generator.choice([1, 2, 7, 64, 1000, 2**24]))

    def _part(self, size: int) -> tuple[int, int]:
        """First and how many, of rows or columns; often all."""
        if self._chance(0.5):
            return 0, size
        first = self._between(0, size - 1)
        return first, self._between(1, size - first)

    def _product(self, tile: int, weights: Array) -> Request:
        form, (output, step) = InputFormat(self._between(0, 2)), self._output()
        (first_row, rows), (first_col, cols) = map(self._part, weights.shape)
        inputs = self._values((self._between(0, 3), rows), 7 if form == InputFormat.INT4 else 127)
        used = weights[first_row : first_row + rows, first_col : first_col + cols]
        self.counted["parts of a tile"] += used.size < weights.size
        mvm = Mvm(inputs, form, output, step, first_row, first_col, cols)
        return self._checked(MessageType.MVM, tile, mvm.encode(), used, inputs, output, step)

    def _gathered(self, tile: int, weights: Array) -> Iterator[Request]:
        count = self._between(1, 200)
        address = self._between(0, BUFFER - count)
        write = WriteBuffer(address, self._values((count,)), InputFormat(2 * self._between(0, 1)))
        self._buffer[address : address + count] = write.values
        self.checks.append(lambda payload: payload == b"")
        yield Request(MessageType.WRITE_BUFFER, write.encode(), ready=self._alone)
        yield replace(self._gather(tile, weights), ready=self._alone)

    def _gather(self, tile: int, weights: Array) -> Request:
        output, step = self._output()
        (first_row, most), (first_col, cols) = map(self._part, weights.shape)
        row_loops = self._loops(self._between(1, 3), most)
        rows = int(np.prod([loop.count for loop in row_loops]))
        positions = self._loops(self._between(0, 3), max(1, min(16, ANSWER // (4 * cols))))
        offsets = addresses(positions)[:, None] + addresses(row_loops)
        base = self._between(-int(offsets.min()), BUFFER - 1 - int(offsets.max()))
        inputs = self._buffer[base + offsets]
        used = weights[first_row : first_row + rows, first_col : first_col + cols]
        self.counted["gathered"] += 1
        gather = MvmGather(base, row_loops, positions, output, step, first_row, first_col, cols)
        return self._checked(MessageType.MVM_GATHER, tile, gather.encode(), used, inputs, output, step)

    def _loops(self, count: int, most: int) -> tuple[Loop, ...]:
        """Loops of at most `most` turns together."""
        loops = []
        for _ in range(count):
            turns = self._between(1, max(1, round(most ** (1 / count))))
            loops.append(Loop(turns, self._between(-10, 10) if turns > 8 else self._between(-30, 30)))
            most //= turns
        return tuple(loops)

    def _checked(
        self, kind: MessageType, tile: int, payload: bytes, used: Array, inputs: Array, form: OutputFormat, step: int
    ) -> Request:
        n, cols, bits = len(inputs), used.shape[1], self.bits

        def right(answer: bytes) -> bool:
            expected, clipped = reference(used, inputs, step, bits, form)
            result = MvmResult.decode(answer, n, cols, form, bits)
            self.counted["clipped"] += clipped
            return np.array_equal(result.outputs, expected) and result.saturated == clipped

        self.checks.append(right)
        return Request(kind, payload, tile, 4 + output_size(n, cols, form, bits))


def _lacking(rows: int) -> Callable[[bytes], bool]:
    """The check of a programming's answer."""
    return lambda payload: ProgramResult.decode(payload).missing == rows


def addresses(loops: tuple[Loop, ...]) -> Array:
    """What each turn adds to the base, the last loop fastest."""
    turns = np.meshgrid(*(np.arange(loop.count) * loop.stride for loop in loops), indexing="ij")
    return np.asarray(sum(turns)).reshape(-1)


def wrong_answers(session: Session, drawn: Random, products: int) -> int:
    """How many answers differ from the reference."""
    return sum(not drawn.checks.popleft()(answer) for answer in session.request_many(drawn.requests(products)))


def through(peer: Peer, products: int) -> dict[str, Any]:
    wrong, start, counted = 0, time.perf_counter(), dict[str, int]()
    for index, bits in enumerate(OUTPUT_BITS):
        share = products // len(OUTPUT_BITS) + (index < products % len(OUTPUT_BITS))
        with peer(bits) as port, connected(port) as connection:
            drawn = Random(1, bits)
            wrong += wrong_answers(connection.session, drawn, share)
        counted = {name: counted.get(name, 0) + number for name, number in drawn.counted.items()}
    return {"products": products, "wrong": wrong} | counted | {"seconds": round(time.perf_counter() - start, 1)}


def exact(products: int) -> dict[str, Any]:
    results = {name: through(peer, products) for name, peer in PEERS.items()}
    return {"output_bits": OUTPUT_BITS, **results, "reached": not any(r["wrong"] for r in results.values())}
