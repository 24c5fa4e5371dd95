"""How vectors are cut into requests: which format is the shortest, and how many fit into a frame. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pimcal_serial.inputs import InputFormat, Int8s, OutputFormat, output_size
from pimcal_serial.messages import BoardInfo, Capability

_MVM_HEAD, _RESULT_HEAD, _PROGRAM_HEAD = 16, 4, 12  # bytes of the payloads before weights and vectors
_MOST_VECTORS = 0xFFFF
_INT16_TOP = 2**15 - 1


def largest(bits: int) -> int:
    """The largest code of so many bits; the range is symmetric."""
    return int(2 ** (bits - 1) - 1)


def input_format(board: BoardInfo, inputs: Int8s) -> InputFormat:
    """The format in which `inputs` [n, rows] are shortest, of those that the board has."""
    sizes = {InputFormat.INT8: vector_sizes(inputs, InputFormat.INT8).sum()}
    if Capability.INT4_INPUTS in board.capabilities and inputs.size and abs(inputs.astype(np.int16)).max() <= 7:
        sizes[InputFormat.INT4] = vector_sizes(inputs, InputFormat.INT4).sum()
    if Capability.ZERO_SKIPPING in board.capabilities:
        skipping = vector_sizes(inputs, InputFormat.ZERO_SKIPPING)
        if not len(skipping) or skipping.max() <= board.max_payload - _MVM_HEAD:
            sizes[InputFormat.ZERO_SKIPPING] = skipping.sum()
    return min(sizes, key=lambda form: (sizes[form], form))


def vector_sizes(inputs: Int8s, form: InputFormat) -> np.ndarray:
    """Bytes of each vector in a format."""
    n, rows = inputs.shape
    match form:
        case InputFormat.INT8:
            return np.full(n, rows)
        case InputFormat.INT4:
            return np.full(n, -(-rows // 2))
        case InputFormat.ZERO_SKIPPING:
            return -(-rows // 8) + np.count_nonzero(inputs, axis=1)


def output_format(board: BoardInfo, bound: int) -> OutputFormat:
    """The shortest format of outputs whose magnitude is at most `bound` where nothing converts them."""
    if not board.output_bits:
        return OutputFormat.INT16 if bound <= _INT16_TOP else OutputFormat.INT32
    if Capability.PACKED_OUTPUTS in board.capabilities and board.output_bits != 16:
        return OutputFormat.PACKED
    return OutputFormat.INT16 if board.output_bits <= 16 else OutputFormat.INT32


def spans(
    board: BoardInfo, sizes: np.ndarray, cols: int, form: OutputFormat, best_payload: Callable[[], int]
) -> Iterator[tuple[int, int]]:
    """First and last-plus-one of the vectors that share a request: as many as fit, both ways.

    `best_payload` is asked for each request, as a link may get worse; a request has one vector at least.
    """
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        room = min(board.max_payload, best_payload())
        before = ends[start - 1] if start else 0
        end = int(np.searchsorted(ends, before + room - _MVM_HEAD, side="right"))
        end = max(start + 1, min(end, start + fitting(board, room, cols, form)))
        yield start, end
        start = end


def fitting(board: BoardInfo, room: int, cols: int, form: OutputFormat) -> int:
    """How many output vectors of `cols` fit into an answer of `room` bytes; one at least, so that work goes on."""
    one = output_size(1, cols, form, board.output_bits)
    return max(1, min(_MOST_VECTORS, board.max_payload, (room - _RESULT_HEAD) // one))


def program_rows(board: BoardInfo, cols: int) -> int:
    """How many rows of weights fit into a request."""
    return max(1, (board.max_payload - _PROGRAM_HEAD) // cols)


def readback_rows(board: BoardInfo, cols: int) -> int:
    """How many rows of weights fit into an answer."""
    return max(1, (board.max_payload - _RESULT_HEAD) // cols)
