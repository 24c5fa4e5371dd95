"""Streams of requests for products and weights, each with what its answer is for. What lasts is done by `driver`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from pimcal.patches import TilePart
from pimcal_serial.frames import MessageType
from pimcal_serial.gather import (
    SEGMENTS,
    Band,
    Overlapping,
    boxes,
    buffer_format,
    loops_of,
    write_spans,
)
from pimcal_serial.inputs import InputFormat, Int8s, Int32s, OutputFormat, output_size
from pimcal_serial.messages import BoardInfo, Mvm, MvmGather, MvmResult, Program, ProgramResult, WriteBuffer
from pimcal_serial.products import fitting, program_rows, spans, vector_sizes
from pimcal_serial.requests import Request
from pimcal_serial.session import Session

LARGEST_STEP = 2**24
_AHEAD = SEGMENTS - 1  # turns by which a piece is written before it is used
_SATURATED_SHARE = 1e-3  # of the outputs that may be clipped before the step is doubled


class Job(NamedTuple):
    """A request, and what to do with its answer."""

    request: Request
    take: Callable[[bytes], None]


def exchange(session: Session, jobs: Iterable[Job]) -> None:
    """Carry out jobs, several under way at once. Raises as `Session.request_many` and the jobs do."""
    takes = deque[Callable[[bytes], None]]()

    def requests() -> Iterator[Request]:
        for request, take in jobs:
            takes.append(take)
            yield request

    for payload in session.request_many(requests()):
        takes.popleft()(payload)


# weights


def program_jobs(
    board: BoardInfo, tile: int, id_: int, weights: Int8s, missing: Callable[[int], None]
) -> Iterator[Job]:
    """Write a matrix; `missing` gets the rows that the board still lacks, each time it says so."""
    rows, cols = weights.shape
    count = program_rows(board, cols)
    for first in range(0, rows, count):
        part = Program(rows, first, id_, weights[first : first + count])
        request = Request(MessageType.PROGRAM, part.encode(), tile, answer_bytes=2)
        yield Job(request, lambda payload: missing(ProgramResult.decode(payload).missing))


# products


class ClippedError(Exception):
    """Outputs were clipped: these vectors have to be multiplied again, with what was chosen instead."""


@dataclass(slots=True)
class Range:
    """How the outputs of a part of a tile travel."""

    form: OutputFormat = OutputFormat.INT32
    step: int = 1


@dataclass(slots=True)
class Product:
    """Vectors times a part of a tile; the first `done` of the outputs are there, in units of products."""

    tile: int
    part: TilePart
    range: Range
    outputs: Int32s
    done: int = 0


@dataclass(frozen=True, slots=True)
class VectorWork:
    """A product of vectors [n, part.rows], and how they travel."""

    product: Product
    inputs: Int8s
    form: InputFormat


@dataclass(frozen=True, slots=True)
class PatchWork:
    """A product of overlapping vectors, and the pieces in which their maps travel."""

    product: Product
    maps: Overlapping
    bands: list[Band]


Work = VectorWork | PatchWork


class Products:
    """The jobs of products on one board.

    They raise ClippedError where `Product.range` was too small; it is larger then.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def of(self, works: Sequence[Work]) -> Iterator[Job]:
        """What is not done yet of some products, one behind the other without a pause in between."""
        yield from self._of_patches([work for work in works if isinstance(work, PatchWork)])
        for work in works:
            if isinstance(work, VectorWork):
                yield from self._of_vectors(work)

    def _of_vectors(self, work: VectorWork) -> Iterator[Job]:
        product = work.product
        part, start = product.part, product.done
        sizes = vector_sizes(work.inputs[start:], work.form)
        for first, last in spans(self._session.info, sizes, part.cols, product.range.form, self._payload):
            vectors, chosen = work.inputs[start + first : start + last], product.range
            mvm = Mvm(vectors, work.form, chosen.form, chosen.step, part.first_row, part.first_col, part.cols)
            yield self._job(product, MessageType.MVM, mvm.encode(), start + first, start + last)

    def _of_patches(self, works: Sequence[PatchWork]) -> Iterator[Job]:
        """Multiply overlapping vectors by way of the board's buffer.

        Each piece of the maps is written while vectors are gathered from the one before the last.
        """
        pieces = self._pieces([(work, band) for work in works for band in work.bands if band.last > work.product.done])
        for turn in range(-_AHEAD, len(pieces)):
            writes = self._writes(pieces[turn + _AHEAD]) if turn + _AHEAD < len(pieces) else ()
            gathers = self._gathers(pieces[turn]) if turn >= 0 else ()
            for jobs in zip_longest(writes, gathers):
                yield from (job for job in jobs if job is not None)

    def _payload(self) -> int:
        return min(self._session.info.max_payload, self._session.best_payload)

    def _pieces(self, bands: Sequence[tuple[PatchWork, Band]]) -> list[_Piece]:
        """Bands and where in the buffer they go."""
        segment = self._session.info.buffer_bytes // SEGMENTS
        pieces: list[_Piece] = []
        for i, (work, band) in enumerate(bands):
            before = pieces[i - SEGMENTS] if i >= SEGMENTS else None
            pieces.append(_Piece(work, band, i % SEGMENTS * segment, before))
        return pieces

    def _writes(self, piece: _Piece) -> Iterator[Job]:
        start = piece.band.start
        values = piece.work.maps.maps.reshape(-1)[start : start + piece.band.size]
        form = buffer_format(self._session.info, values)
        for first, last in write_spans(values, form, self._payload):
            write = WriteBuffer(piece.address + first, values[first:last], form)
            piece.unwritten += 1
            request = Request(MessageType.WRITE_BUFFER, write.encode(), ready=piece.may_be_written)
            yield Job(request, piece.written)

    def _gathers(self, piece: _Piece) -> Iterator[Job]:
        product = piece.work.product
        board, part, first = self._session.info, product.part, piece.band.first
        rows = loops_of(piece.work.maps.rows)

        def room() -> int:
            return fitting(board, self._payload(), part.cols, product.range.form)

        for offset, loops in boxes(piece.band.grid, room):
            last = first + math.prod(loop.count for loop in loops)
            if last > product.done:
                chosen, base, grid = product.range, piece.address + offset, loops_of(loops)
                where = part.first_row, part.first_col, part.cols
                gather = MvmGather(base, rows, grid, chosen.form, chosen.step, *where)
                piece.ungathered += 1
                job = self._job(product, MessageType.MVM_GATHER, gather.encode(), first, last, piece.may_be_gathered)
                yield Job(job.request, piece.gathered(job.take))
            first = last

    def _job(
        self,
        product: Product,
        kind: MessageType,
        payload: bytes,
        first: int,
        last: int,
        ready: Callable[[], bool] | None = None,
    ) -> Job:
        """A request for the vectors `first` to `last`."""
        cols, bits, form, step = (
            product.part.cols,
            self._session.info.output_bits,
            product.range.form,
            product.range.step,
        )

        def take(payload: bytes) -> None:
            result = MvmResult.decode(payload, last - first, cols, form, bits)
            if _clips_too_much(product.range, result, bits):
                raise ClippedError
            np.multiply(result.outputs, step, out=product.outputs[first:last])
            product.done = last

        answer_bytes = 4 + output_size(last - first, cols, form, bits)
        request = Request(kind, payload, product.tile, answer_bytes)
        return Job(request if ready is None else replace(request, ready=ready), take)


@dataclass(slots=True)
class _Piece:
    """A band in the buffer. What was sent for it and has no answer yet is counted."""

    work: PatchWork
    band: Band
    address: int
    before: _Piece | None  # which was at the same place
    unwritten: int = 0
    ungathered: int = 0

    def may_be_written(self) -> bool:
        return self.before is None or not self.before.ungathered

    def written(self, payload: bytes) -> None:
        self.unwritten -= 1

    def may_be_gathered(self) -> bool:
        return not self.unwritten

    def gathered(self, take: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def count_and_take(payload: bytes) -> None:
            self.ungathered -= 1
            take(payload)

        return count_and_take


def _clips_too_much(chosen: Range, result: MvmResult, output_bits: int) -> bool:
    """Whether a wider format or a larger step is needed; takes it."""
    if not result.saturated:
        return False
    if not output_bits:
        was, chosen.form = chosen.form, OutputFormat.INT32
        return was != OutputFormat.INT32
    if result.saturated <= _SATURATED_SHARE * result.outputs.size or chosen.step >= LARGEST_STEP:
        return False
    chosen.step = min(2 * chosen.step, LARGEST_STEP)
    return True
