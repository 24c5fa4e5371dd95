"""Write the test vectors of docs/protocol.md beside this file: `python tests/vectors/make_vectors.py`.

A second, plain implementation, byte by byte, that shares nothing with the packages it tests.
"""

from __future__ import annotations

import json
from pathlib import Path

Vector = dict[str, object]

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


WEIGHTS = [[1, -2, 3], [0, 127, -127], [5, 0, -6], [-7, 8, 9]]
FLAT = [weight for row in WEIGHTS for weight in row]
INPUTS = [[1, 0, -1, 2], [0, 0, 7, -8]]
OUTPUTS = [[sum(x * row[j] for x, row in zip(vector, WEIGHTS, strict=True)) for j in range(3)] for vector in INPUTS]
FLAT_OUTPUTS = [value for vector in OUTPUTS for value in vector]
HELLO_BOARD = {
    "minor": 0,
    "boot_id": 0x12345678,
    "model": "example",
    "serial_number": "PIM-0001",
    "firmware": "1.0",
    "tiles": 4,
    "rows": 256,
    "cols": 256,
    "weight_bits": 8,
    "input_bits": 8,
    "output_bits": 10,
    "max_payload": 4096,
    "window": 4,
    "replay": 8,
    "command_ms": 20,
    "capabilities": 0b111111,
    "buffer_bytes": 65536,
    "mvm_ns": 130,
}
_SIZES = {"boot_id": 4, "rows": 2, "cols": 2, "max_payload": 2, "buffer_bytes": 4}


def request(name: str, payload: bytes, meaning: Vector, tile: int = 0xFFFF, title: str = "") -> Vector:
    return frame_vector(title or f"{name} request", TYPES[name], 0x0102, tile, 0, payload, meaning)


def answer(
    name: str,
    payload: bytes,
    meaning: Vector,
    tile: int = 0xFFFF,
    status: int = 0,
    title: str = "",
    sequence: int = 0x0102,
) -> Vector:
    return frame_vector(title or f"{name} answer", TYPES[name] | 0x80, sequence, tile, status, payload, meaning)


def frame_vector(
    name: str, kind: int, sequence: int, tile: int, status: int, payload: bytes, meaning: Vector, flags: int = 0
) -> Vector:
    frame = {"version": 1, "type": kind, "sequence": sequence, "tile": tile, "status": status, "payload": payload.hex()}
    encoded = line(body(kind, sequence, tile, status, payload, flags=flags))
    return {"name": name, "hex": encoded.hex(), "frame": frame, "flags": flags, "meaning": meaning}


def link_frames() -> list[Vector]:
    board = b"".join(
        tlv(tag, value, _SIZES.get(key, 1))  # type: ignore[arg-type]
        for tag, (key, value) in enumerate(HELLO_BOARD.items(), 1)
    )
    return [
        request("HELLO", tlv(1, 0) + tlv(19, "pimcal 0.1"), {"minor": 0, "name": "pimcal 0.1"}),
        answer("HELLO", board, dict(HELLO_BOARD)),
        answer(
            "HELLO", tlv(2, 7, 8) + tlv(200, "?") + tlv(6, 3, 4), {"boot_id": 7, "tiles": 3}, title="HELLO, unknown tag"
        ),
        request("ECHO", b"\x00\x7f", {"data": "007f"}),
        answer("ECHO", b"\x00\x7f", {"data": "007f"}),
        request("ECHO", b"", {"data": ""}, title="ECHO of nothing"),
        request(
            "ECHO", bytes(range(1, 256)) * 2, {"data": (bytes(range(1, 256)) * 2).hex()}, title="ECHO without zeros"
        ),
        request("ECHO", bytes(600), {"data": bytes(600).hex()}, title="ECHO of zeros"),
        request("SINK", b"\x01\x02\x03", {"data": "010203"}),
        answer("SINK", little(3, 4), {"value": 3}),
        request("BAUD", little(921600, 4), {"value": 921600}),
        answer("BAUD", b"", {}),
        request("RESET", b"", {}),
        answer("RESET", b"", {}),
        answer("LOG", b"\x02" + "warm: 61 °C".encode(), {"level": 2, "text": "warm: 61 °C"}, sequence=0, title="LOG"),
        answer("BOOT", little(0x12345678, 4), {"boot_id": 0x12345678}, sequence=0, title="BOOT"),
        answer("BOOT", little(9, 4) + tlv(5, "1.0"), {"boot_id": 9}, sequence=0, title="BOOT with TLVs"),
        frame_vector("ECHO with flags", 2, 3, 0xFFFF, 0, b"a", {"data": "61"}, flags=0x80),
    ]


def state_frames() -> list[Vector]:
    trims, trim_bytes = {"offset": [0, -300, 300], "gain": [16384, 0, 65535]}, b""
    for offset, gain in zip(trims["offset"], trims["gain"], strict=True):
        trim_bytes += little(offset, 2) + little(gain, 2)
    counters = {"received": 300, "dropped": 2, "other_version": 1, "replayed": 4, "multiplied": 70000}
    counters |= {"programmed": 12, "sent": 301}
    stats = b"".join(tlv(tag, value, 4) for tag, value in enumerate(counters.values(), 1))
    readings = {"temperature_c": 41.25, "supply_mv": 3300, "uptime_ms": 100000}
    read = tlv(1, 27315 + 4125, 2) + tlv(2, 3300, 2) + tlv(3, 100000, 4)
    rows = {"rows": 4, "cols": 3, "first": 1, "count": 2, "id": 9, "weights": WEIGHTS[1:3]}
    part = ints([4, 3, 1, 2], 2) + b"\x09" + int8s(FLAT[3:9])
    return [
        request("PROGRAM", part, dict(rows), tile=2),
        answer("PROGRAM", little(2, 2), {"missing": 2}, tile=2),
        request("READBACK", ints([0, 4], 2), {"first": 0, "count": 4}, tile=2),
        answer("READBACK", ints([4, 3], 2) + int8s(FLAT), {"rows": 4, "weights": WEIGHTS}, tile=2),
        request("READ", b"", {}),
        answer("READ", read, dict(readings)),
        request("SELFTEST", b"", {}),
        answer("SELFTEST", ints([16, 2, 3, 300], 2), {"tested": 16, "failed": [3, 300]}),
        request("GET_TRIM", b"", {}, tile=2),
        answer("GET_TRIM", trim_bytes, dict(trims), tile=2),
        request("SET_TRIM", trim_bytes, dict(trims), tile=2),
        answer("SET_TRIM", b"", {}, tile=2),
        request("STATS", b"", {}),
        answer("STATS", stats, dict(counters)),
    ]


def product_frames() -> list[Vector]:
    vectors: list[Vector] = []
    for code, encode in enumerate((int8s, nibbles, zero_skipped)):
        data = b"".join(encode(vector) for vector in INPUTS)
        meaning: Vector = {"input_format": code, "output_format": 1, "step": 1, "count": 2, "rows": 4, "inputs": INPUTS}
        head = bytes([code, 1]) + little(2, 2) + little(1, 4)
        vectors.append(request("MVM", head + data, meaning, tile=2, title=f"MVM request, input format {code}"))
        meaning = {"input_format": code, "address": 1000, "values": INPUTS[0]}
        head = bytes([code, 0]) + little(4, 2) + little(1000, 4)
        title = f"WRITE_BUFFER request, input format {code}"
        vectors.append(request("WRITE_BUFFER", head + encode(INPUTS[0]), meaning, title=title))
    outputs = (ints(FLAT_OUTPUTS, 4), ints(FLAT_OUTPUTS, 2), b"".join(packed(vector, 10) for vector in OUTPUTS))
    for code, data in enumerate(outputs):
        meaning = {"output_format": code, "output_bits": 10, "count": 2, "cols": 3, "saturated": 5, "outputs": OUTPUTS}
        title = f"MVM answer, output format {code}"
        vectors.append(answer("MVM", little(5, 4) + data, meaning, tile=2, title=title))
    vectors.append(answer("WRITE_BUFFER", b"", {}))
    return [*vectors, *gather_frames(outputs[1])]


def gather_frames(outputs: bytes) -> list[Vector]:
    """Two rows, four columns of positions over a padded map of width 6, kernel 2 x 2."""
    loops = [(2, 6), (2, 1)], [(2, 12), (2, 2)]
    addresses = [
        [100 + 12 * y + 2 * x + 6 * row + col for row in range(2) for col in range(2)]
        for y in range(2)
        for x in range(2)
    ]
    payload = bytes([0, 1, 2, 2]) + little(1, 4) + little(100, 4)
    payload += b"".join(little(count, 2) + little(stride, 4) for part in loops for count, stride in part)
    meaning: Vector = {"output_format": 1, "step": 1, "base": 100, "row_loops": loops[0], "position_loops": loops[1]}
    meaning["addresses"] = addresses
    backwards = bytes([0, 0, 1, 0]) + little(5, 4) + little(3, 4) + little(4, 2) + little(-1, 4)
    one: Vector = {"output_format": 0, "step": 5, "base": 3, "row_loops": [(4, -1)], "position_loops": []}
    one["addresses"] = [[3, 2, 1, 0]]
    result: Vector = {"output_format": 1, "output_bits": 10, "count": 2, "cols": 3, "saturated": 0, "outputs": OUTPUTS}
    return [
        request("MVM_GATHER", payload, meaning, tile=2),
        request("MVM_GATHER", backwards, one, tile=2, title="MVM_GATHER request, negative stride, one position"),
        answer("MVM_GATHER", little(0, 4) + outputs, result, tile=2),
    ]


def status_frames() -> list[Vector]:
    names = ("VERSION", "UNKNOWN_TYPE", "BAD_LENGTH", "OUT_OF_RANGE", "BAD_VALUE", "NOT_PROGRAMMED", "BUSY")
    refused = [
        answer("MVM" if status > 1 else "HELLO", b"", {}, tile=2, status=status, title=f"status {name}")
        for status, name in enumerate(names, 1)
    ]
    return [*refused, answer("MVM", b"no supply", {"fault": "no supply"}, tile=2, status=8, title="status FAULT")]


def malformed() -> list[Vector]:
    """What is no frame; `counted` says which of a receiver's counters goes up."""
    content = body(2, 1, 0xFFFF, 0, b"\x05\x06")
    good = line(content)
    inverted = little(crc32(content) ^ 1, 4)
    swapped = little(crc32(content), 4)[::-1]
    vectors = {
        "one byte": (b"\x05\x00", "dropped"),
        "empty COBS data": (b"\x01\x00", "dropped"),
        "code reaches past the end": (b"\x09" + good[1:-2] + b"\0", "dropped"),
        "last byte lost": (good[:-2] + b"\0", "dropped"),
        "first byte lost": (good[1:], "dropped"),
        "eleven bytes with a right CRC": (line(content[:7]), "dropped"),
        "CRC alone": (line(b""), "dropped"),
        "one bit of the CRC is wrong": (stuff(content + inverted) + b"\0", "dropped"),
        "CRC in big-endian order": (stuff(content + swapped) + b"\0", "dropped"),
        "two frames without a zero between them": (good[:-1] + good, "dropped"),
        "version 2": (line(body(1, 1, 0xFFFF, 0, b"", version=2)), "other_version"),
        "version 0": (line(body(2, 1, 0xFFFF, 0, b"abc", version=0)), "other_version"),
        "zeros alone": (b"\0\0\0", "nothing"),
    }
    return [{"name": name, "hex": data.hex(), "counted": counted} for name, (data, counted) in vectors.items()]


def formats() -> list[Vector]:
    """Vectors alone: `direction` in or out, `bits` of the converter for packed outputs."""
    lengths = [[3, -4, 0, 7, -7], [0], [0] * 9, [-1, 0, 0, 0, 0, 0, 0, 5], list(range(-7, 8))]
    vectors: list[Vector] = []
    for code, encode in enumerate((int8s, nibbles, zero_skipped)):
        vectors += [
            {"direction": "in", "format": code, "values": [values], "hex": encode(values).hex()} for values in lengths
        ]
    for bits in (1, 4, 7, 8, 10, 12, 16):
        top = max(2 ** (bits - 1) - 1, 0)
        values = [top, -top, 0, -1 if top else 0, top // 3]
        twice = [values, values[::-1]]
        data = b"".join(packed(vector, bits) for vector in twice).hex()
        vectors.append({"direction": "out", "format": 2, "bits": bits, "values": twice, "hex": data})
    wide = [[2**31 - 1, -(2**31), 0, -1]]
    vectors.append({"direction": "out", "format": 0, "bits": 0, "values": wide, "hex": ints(wide[0], 4).hex()})
    short = [[32767, -32768, 0, -1]]
    vectors.append({"direction": "out", "format": 1, "bits": 0, "values": short, "hex": ints(short[0], 2).hex()})
    return vectors


def converted(total: int, offset: int, gain: int, step: int, bits: int) -> int:
    """What becomes of one column's sum, before clipping to the output format."""
    trimmed = (total * gain + 8192) // 16384 + offset
    if not bits:
        return trimmed
    whole, rest = divmod(abs(trimmed), step)
    return (whole + (2 * rest >= step)) * (1 if trimmed >= 0 else -1)


def products() -> list[Vector]:
    """Sums of the matrix above through trims, converters and clipping."""
    plain = {"offset": [0, 0, 0], "gain": [16384] * 3}
    trimmed = {"offset": [100, -1, 0], "gain": [16000, 24577, 65535]}
    wide = [[127, 127, 127, 127], [-127, 127, -127, 127], [0, 1, 0, 0]]
    cases = [
        (plain, 1, 0, 0, INPUTS),
        (plain, 1, 0, 0, wide),
        (trimmed, 1, 0, 0, wide),
        (plain, 2, 8, 0, INPUTS),
        (plain, 9, 8, 2, wide),
        (trimmed, 33, 10, 2, wide),
        (trimmed, 7, 6, 1, INPUTS),
        ({"offset": [32767, -32768, 0], "gain": [65535] * 3}, 1, 0, 1, wide),
    ]
    return [product(*case) for case in cases]


def product(trims: dict[str, list[int]], step: int, bits: int, output_format: int, inputs: list[list[int]]) -> Vector:
    top = 2 ** (bits - 1) - 1 if bits else (2**31 - 1, 2**15 - 1)[output_format]
    bottom = -top if bits else -top - 1
    outputs, saturated = [], 0
    for vector in inputs:
        sums = [sum(x * row[j] for x, row in zip(vector, WEIGHTS, strict=True)) for j in range(3)]
        values = [converted(s, trims["offset"][j], trims["gain"][j], step, bits) for j, s in enumerate(sums)]
        outputs.append([min(max(value, bottom), top) for value in values])
        saturated += sum(not bottom <= value <= top for value in values)
    known: Vector = {"weights": WEIGHTS, "inputs": inputs, "step": step, "output_bits": bits}
    return {**known, **trims, "output_format": output_format, "outputs": outputs, "saturated": saturated}


def main() -> None:
    files = {
        "frames": link_frames() + state_frames() + product_frames() + status_frames(),
        "malformed": malformed(),
        "formats": formats(),
        "products": products(),
    }
    for name, vectors in files.items():
        text = ",\n".join(json.dumps(vector, ensure_ascii=False) for vector in vectors)
        Path(__file__).with_name(f"{name}.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
