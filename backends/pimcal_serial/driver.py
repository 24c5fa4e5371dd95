"""Integers onto a board's tiles and products back, whatever happens to the link meanwhile. Knows nothing of torch."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import TypeVar

import numpy as np

from pimcal.errors import DataError, DeviceUnavailableError
from pimcal.patches import TilePart
from pimcal_serial.frames import MessageType, PayloadError
from pimcal_serial.gather import Overlapping, bands
from pimcal_serial.inputs import Int8s, Int32s
from pimcal_serial.messages import Readback, ReadbackResult, Readings
from pimcal_serial.products import input_format, largest, output_format, readback_rows
from pimcal_serial.requests import BoardRestartedError, Request
from pimcal_serial.session import Session
from pimcal_serial.streams import (
    LARGEST_STEP,
    ClippedError,
    Job,
    PatchWork,
    Product,
    Products,
    Range,
    VectorWork,
    Work,
    exchange,
    program_jobs,
)

logger = logging.getLogger("pimcal.serial")

T = TypeVar("T")

_MOST_RESTARTS = 10  # of the board during one operation
_SAMPLE = 256  # vectors that the first step is estimated from
_HEADROOM = 1.1  # of the first step over the largest exact product: the array errs


@dataclass(slots=True)
class _Held:
    """A tile's weights as they were sent, and how the outputs of its parts travel."""

    weights: Int8s
    ranges: dict[TilePart, Range] = field(default_factory=dict)


class Driver:
    """A board's tiles. After a restart of the board the weights are programmed again."""

    def __init__(self, session: Session, random: Random | None = None) -> None:
        self.session = session
        self._random = random or SystemRandom()  # for ids of programmings, which are to differ from anybody's before
        self._products = Products(session)
        self._held: dict[int, _Held] = {}
        self._stale = False  # the board has lost its weights
        self._ahead = deque[Job]()  # what is still to be sent of tiles that are programmed ahead
        self._unfinished = set[int]()  # tiles of which not everything is known to be there

    def shape(self, tile: int) -> tuple[int, int] | None:
        """Rows and columns of what was programmed, None where nothing was."""
        held = self._held.get(tile)
        return None if held is None else (held.weights.shape[0], held.weights.shape[1])

    def program(self, tile: int, weights: Int8s) -> None:
        """Write `weights` [rows, cols] to a tile. Raises DataError for codes that the board does not have."""
        self._hold(tile, weights)
        self._surviving(lambda: self._finish(tile))

    def program_ahead(self, tile: int, weights: Int8s) -> None:
        """Write `weights` to a tile between the products of others, and at the latest when it is used."""
        self._hold(tile, weights)

        def note(missing: int) -> None:
            if not missing:
                self._unfinished.discard(tile)

        self._ahead.extend(program_jobs(self.session.info, tile, self._new_id(), weights, note))

    def adopt(self, tile: int) -> None:
        """Take over what somebody else has programmed. Raises RefusedError where the tile holds nothing."""
        self._held[tile] = _Held(self.readback(tile))

    def multiply(self, tile: int, inputs: Int8s, part: TilePart | None = None) -> Int32s:
        """`inputs` [n, part.rows] times a part of a programmed tile, all of it if left out: [n, part.cols], in product
        units (converter's codes times step)."""
        return self._multiplied([self._of_vectors(tile, inputs, part)])[0]

    def multiply_patches(self, tile: int, patches: Overlapping, part: TilePart) -> Int32s:
        """As `multiply` of the patches' vectors, which the board gathers from its buffer where that can be done."""
        return self._multiplied([self._of_patches(tile, patches, part, alone=True)])[0]

    def multiply_parts(self, products: Sequence[tuple[int, Int8s | Overlapping, TilePart]]) -> list[Int32s]:
        """As `multiply` and `multiply_patches` of each (tile, inputs, part), without a wait between them."""
        alone = len(products) == 1
        return self._multiplied(
            [
                self._of_patches(tile, inputs, part, alone=alone)
                if isinstance(inputs, Overlapping)
                else self._of_vectors(tile, inputs, part)
                for tile, inputs, part in products
            ]
        )

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
            logger.warning("the board has restarted; programming %d tile(s) again", len(self._held))
        for tile in self._held:
            self._unfinished.add(tile)
            self._finish(tile)
        self._stale = False

    # weights

    def _hold(self, tile: int, weights: Int8s) -> None:
        _check_codes(f"tile {tile}: weights", weights, self.session.info.weight_bits)
        self._held[tile] = _Held(weights)
        self._unfinished.add(tile)
        self._ahead = deque(job for job in self._ahead if job.request.tile != tile)

    def _finish(self, tile: int) -> None:
        """Write a tile unless all of it is there."""
        if tile not in self._unfinished:
            return
        self._ahead = deque(job for job in self._ahead if job.request.tile != tile)
        missing: list[int] = []
        exchange(
            self.session,
            program_jobs(self.session.info, tile, self._new_id(), self._held[tile].weights, missing.append),
        )
        if min(missing):
            self.session.hello()  # it may have restarted in between
            raise DeviceUnavailableError(
                f"tile {tile} lacks {min(missing)} rows after programming; update its firmware"
            )
        self._unfinished.discard(tile)

    def _new_id(self) -> int:
        return self._random.getrandbits(32)

    def _read_back(self, tile: int) -> Int8s:
        if tile in self._held:
            self._finish(tile)
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

    def _of_vectors(self, tile: int, inputs: Int8s, part: TilePart | None) -> VectorWork:
        _check_codes(f"tile {tile}: inputs", inputs, self.session.info.input_bits)
        product = self._product(tile, part, len(inputs), lambda count: inputs[:: max(1, len(inputs) // count)])
        return VectorWork(product, inputs, input_format(self.session.info, inputs))

    def _of_patches(self, tile: int, patches: Overlapping, part: TilePart, *, alone: bool) -> Work:
        pieces = bands(self.session.info, patches, alone=alone)
        if pieces is None:
            return self._of_vectors(tile, patches.vectors(), part)
        _check_codes(f"tile {tile}: inputs", patches.maps, self.session.info.input_bits)
        return PatchWork(self._product(tile, part, len(patches), patches.sample), patches, pieces)

    def _product(self, tile: int, part: TilePart | None, vectors: int, sample: Callable[[int], Int8s]) -> Product:
        """A product of which nothing is done; a part's first one chooses how its outputs travel."""
        held = self._held[tile]
        part = part or TilePart(0, held.weights.shape[0], 0, held.weights.shape[1])
        chosen = held.ranges.get(part)
        if chosen is None and vectors:
            chosen = self._first_range(_weights_of(held.weights, part), sample(_SAMPLE))
            if chosen is not None:
                held.ranges[part] = chosen
        return Product(tile, part, chosen or Range(), np.empty((vectors, part.cols), np.int32))

    def _first_range(self, weights: Int8s, inputs: Int8s) -> Range | None:
        """For an output converter the step with which an exact array's largest product just fits; None where inputs of
        nothing but zeros do not tell."""
        board = self.session.info
        bound = int(np.abs(weights.astype(np.int64)).sum(0).max()) * largest(board.input_bits)
        form = output_format(board, bound)
        if not board.output_bits:
            return Range(form)
        peak = float(np.abs(inputs.astype(np.float32) @ weights.astype(np.float32)).max())
        step = math.ceil(_HEADROOM * peak / largest(board.output_bits))
        return Range(form, min(LARGEST_STEP, step)) if step else None

    def _multiplied(self, works: Sequence[Work]) -> list[Int32s]:
        """The outputs; what is interrupted goes on with the first vector that is not done."""

        def go_on() -> None:
            for tile in dict.fromkeys(work.product.tile for work in works):
                self._finish(tile)
            while todo := [work for work in works if work.product.done < len(work.product.outputs)]:
                with suppress(ClippedError):
                    exchange(self.session, self._with_programming(self._products.of(todo)))

        self._surviving(go_on)
        return [work.product.outputs for work in works]

    def _with_programming(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Behind each job a piece of what is programmed ahead."""
        for job in jobs:
            yield job
            if self._ahead:
                yield self._ahead.popleft()


def _weights_of(weights: Int8s, part: TilePart) -> Int8s:
    return weights[part.first_row : part.first_row + part.rows, part.first_col : part.first_col + part.cols]


def _check_codes(what: str, codes: Int8s, bits: int) -> None:
    top = largest(bits)
    if codes.size and not -top <= codes.min() <= codes.max() <= top:
        raise DataError(f"{what} must lie in -{top} to {top}, the board's {bits} bits")
