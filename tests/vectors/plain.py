"""The protocol byte by byte, and its arithmetic: a second implementation, which shares nothing with those it tests."""

from __future__ import annotations

TYPES = {
    "HELLO": 0x01,
    "ECHO": 0x02,
    "SINK": 0x03,
    "PROGRAM": 0x10,
    "READBACK": 0x11,
    "MVM": 0x12,
    "READ": 0x13,
    "SELFTEST": 0x14,
    "GET_TRIM": 0x15,
    "SET_TRIM": 0x16,
    "STATS": 0x17,
    "BAUD": 0x18,
    "RESET": 0x19,
    "WRITE_BUFFER": 0x20,
    "MVM_GATHER": 0x21,
    "LOG": 0x70,
    "BOOT": 0x71,
}


def little(value: int, size: int) -> bytes:
    return bytes((value >> 8 * place) & 255 for place in range(size))


def crc32(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0xEDB88320 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def stuff(data: bytes) -> bytes:
    stuffed, piece = b"", b""
    open_piece = True  # whether a piece is still to be ended
    for byte in data:
        open_piece = True
        if byte:
            piece += bytes([byte])
            if len(piece) == 254:
                stuffed, piece, open_piece = stuffed + b"\xff" + piece, b"", False
        else:
            stuffed, piece = stuffed + bytes([len(piece) + 1]) + piece, b""
    return stuffed + bytes([len(piece) + 1]) + piece if open_piece else stuffed


def body(kind: int, sequence: int, tile: int, status: int, payload: bytes, version: int = 1, flags: int = 0) -> bytes:
    header = bytes([version, kind]) + little(sequence, 2) + little(tile, 2) + bytes([status, flags])
    return header + payload


def line(content: bytes) -> bytes:
    return stuff(content + little(crc32(content), 4)) + b"\0"


def tlv(tag: int, value: int | str, size: int = 1) -> bytes:
    content = value.encode() if isinstance(value, str) else little(value, size)
    return bytes([tag, len(content)]) + content


def nibbles(values: list[int]) -> bytes:
    halves = [value & 15 for value in values] + [0] * (len(values) % 2)
    return bytes(low | high << 4 for low, high in zip(halves[::2], halves[1::2], strict=True))


def zero_skipped(values: list[int]) -> bytes:
    mask = [0] * ((len(values) + 7) // 8)
    for place, value in enumerate(values):
        if value:
            mask[place // 8] |= 1 << place % 8
    return bytes(mask) + bytes(value & 255 for value in values if value)


def packed(values: list[int], bits: int) -> bytes:
    word = 0
    for place, value in enumerate(values):
        word |= (value & (1 << bits) - 1) << bits * place
    return little(word, (len(values) * bits + 7) // 8)


def int8s(values: list[int]) -> bytes:
    return bytes(value & 255 for value in values)


def ints(values: list[int], size: int) -> bytes:
    return b"".join(little(value, size) for value in values)


def vectors_in(values: list[list[int]], input_format: int) -> bytes:
    return b"".join((int8s, nibbles, zero_skipped)[input_format](vector) for vector in values)


def vectors_out(values: list[list[int]], output_format: int, bits: int) -> bytes:
    if output_format == 2:
        return b"".join(packed(vector, bits) for vector in values)
    return b"".join(ints(vector, (4, 2)[output_format]) for vector in values)


Loops = list[tuple[int, int]]


def mvm_payload(
    inputs: list[list[int]],
    input_format: int = 0,
    output_format: int = 0,
    step: int = 1,
    first_row: int = 0,
    first_col: int = 0,
    cols: int = 0,
    rows: int | None = None,
) -> bytes:
    part = [first_row, len(inputs[0]) if rows is None else rows, first_col, cols]
    head = bytes([input_format, output_format]) + little(len(inputs), 2) + little(step, 4) + ints(part, 2)
    return head + vectors_in(inputs, input_format)


def gather_payload(
    base: int,
    row_loops: Loops,
    position_loops: Loops,
    output_format: int = 0,
    step: int = 1,
    first_row: int = 0,
    first_col: int = 0,
    cols: int = 0,
) -> bytes:
    head = bytes([0, output_format, len(row_loops), len(position_loops)]) + little(step, 4) + little(base, 4)
    loops = b"".join(little(count, 2) + little(stride, 4) for count, stride in [*row_loops, *position_loops])
    return head + ints([first_row, first_col, cols], 2) + loops


def write_payload(values: list[int], address: int, input_format: int = 0) -> bytes:
    return bytes([input_format, 0]) + little(len(values), 2) + little(address, 4) + vectors_in([values], input_format)


def program_payload(weights: list[list[int]], number: int, rows: int = 0, first: int = 0) -> bytes:
    fields = ints([rows or len(weights), len(weights[0]), first, len(weights)], 2) + little(number, 4)
    return fields + b"".join(int8s(row) for row in weights)


def trims_payload(offset: list[int], gain: list[int]) -> bytes:
    return b"".join(little(o, 2) + little(g, 2) for o, g in zip(offset, gain, strict=True))


def converted(total: int, offset: int, gain: int, step: int, bits: int) -> int:
    """What becomes of one column's sum, before clipping."""
    trimmed = (total * gain + 8192) // 16384 + offset
    if not bits:
        return trimmed
    whole, rest = divmod(abs(trimmed), step)
    return (whole + (2 * rest >= step)) * (1 if trimmed >= 0 else -1)


def clipped(value: int, bits: int, output_format: int) -> int:
    width = (32, 16, bits)[output_format]
    top = 2 ** (min(bits or width, width) - 1) - 1
    return max(-top if bits else -top - 1, min(top, value))


class Tile:
    """A programmed tile; `multiply` gives output vectors and how many of their values were clipped."""

    def __init__(self, weights: list[list[int]]) -> None:
        self.weights = weights
        self.offset = [0] * len(weights[0])
        self.gain = [16384] * len(weights[0])

    def multiply(
        self,
        inputs: list[list[int]],
        first_row: int = 0,
        first_col: int = 0,
        cols: int = 0,
        step: int = 1,
        bits: int = 0,
        output_format: int = 0,
    ) -> tuple[list[list[int]], int]:
        outputs, saturated = [], 0
        for vector in inputs:
            values = []
            for col in range(first_col, first_col + cols if cols else len(self.offset)):
                total = 0
                for row, value in enumerate(vector, first_row):
                    total += value * self.weights[row][col]
                values.append(converted(total, self.offset[col], self.gain[col], step, bits))
            outputs.append([clipped(value, bits, output_format) for value in values])
            saturated += sum(value != kept for value, kept in zip(values, outputs[-1], strict=True))
        return outputs, saturated
