"""Write the test vectors of docs/protocol.md: `python tests/vectors/make_vectors.py [FOLDER]`, else beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from exchanges import exchanges
from plain import (
    TYPES,
    Tile,
    body,
    crc32,
    gather_payload,
    int8s,
    ints,
    line,
    little,
    mvm_payload,
    nibbles,
    packed,
    program_payload,
    stuff,
    tlv,
    trims_payload,
    vectors_out,
    write_payload,
    zero_skipped,
)

Vector = dict[str, object]

WEIGHTS = [[1, -2, 3], [0, 127, -127], [5, 0, -6], [-7, 8, 9]]
INPUTS = [[1, 0, -1, 2], [0, 0, 7, -8]]
OUTPUTS, _ = Tile(WEIGHTS).multiply(INPUTS)
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
    trims = {"offset": [0, -300, 300], "gain": [16384, 0, 65535]}
    trim_bytes = trims_payload(trims["offset"], trims["gain"])
    counters = {"received": 300, "dropped": 2, "other_version": 1, "replayed": 4, "multiplied": 70000}
    counters |= {"programmed": 12, "sent": 301}
    stats = b"".join(tlv(tag, value, 4) for tag, value in enumerate(counters.values(), 1))
    readings = {"temperature_c": 41.25, "supply_mv": 3300, "uptime_ms": 100000}
    read = tlv(1, 27315 + 4125, 2) + tlv(2, 3300, 2) + tlv(3, 100000, 4)
    rows = {"rows": 4, "cols": 3, "first": 1, "count": 2, "id": 9, "weights": WEIGHTS[1:3]}
    part = program_payload(WEIGHTS[1:3], 9, rows=4, first=1)
    whole = ints([4, 3], 2) + b"".join(int8s(row) for row in WEIGHTS)
    return [
        request("PROGRAM", part, dict(rows), tile=2),
        answer("PROGRAM", little(2, 2), {"missing": 2}, tile=2),
        request("READBACK", ints([0, 4], 2), {"first": 0, "count": 4}, tile=2),
        answer("READBACK", whole, {"rows": 4, "weights": WEIGHTS}, tile=2),
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
    for code in range(3):
        meaning: Vector = {"input_format": code, "output_format": 1, "step": 1, "count": 2, "inputs": INPUTS}
        meaning |= {"first_row": 0, "rows": 4, "first_col": 0, "cols": 3}
        title = f"MVM request, input format {code}"
        vectors.append(request("MVM", mvm_payload(INPUTS, code, 1, cols=3), meaning, tile=2, title=title))
        meaning = {"input_format": code, "address": 1000, "values": INPUTS[0]}
        title = f"WRITE_BUFFER request, input format {code}"
        vectors.append(request("WRITE_BUFFER", write_payload(INPUTS[0], 1000, code), meaning, title=title))
    for code in range(3):
        meaning = {"output_format": code, "output_bits": 10, "count": 2, "cols": 3, "saturated": 5, "outputs": OUTPUTS}
        payload = little(5, 4) + vectors_out(OUTPUTS, code, 10)
        vectors.append(answer("MVM", payload, meaning, tile=2, title=f"MVM answer, output format {code}"))
    vectors.append(answer("WRITE_BUFFER", b"", {}))
    return [*vectors, *part_frames(), *gather_frames()]


def part_frames() -> list[Vector]:
    """Every field of a part at its place: no two of them are equal."""
    part: Vector = {"first_row": 258, "first_col": 1027, "cols": 1541}
    mvm: Vector = {**part, "inputs": INPUTS, "rows": 4, "output_format": 0, "step": 9}
    gather: Vector = {**part, "base": 7, "row_loops": [(2, 3)], "position_loops": [], "rows": 2, "addresses": [[7, 10]]}
    return [
        request("MVM", mvm_payload(INPUTS, 0, 0, 9, 258, 1027, 1541), mvm, tile=2, title="MVM request, a part"),
        request(
            "MVM",
            mvm_payload([[]], 0, 1, 1, 3, 1),
            {"first_row": 3, "rows": 0, "first_col": 1, "cols": 0, "inputs": [[]]},
            tile=2,
            title="MVM request, no rows",
        ),
        request(
            "MVM_GATHER",
            gather_payload(7, [(2, 3)], [], 0, 9, 258, 1027, 1541),
            gather,
            tile=2,
            title="MVM_GATHER request, a part",
        ),
    ]


def gather_frames() -> list[Vector]:
    """Two rows, four columns of positions over a padded map of width 6, kernel 2 x 2."""
    loops = [(2, 6), (2, 1)], [(2, 12), (2, 2)]
    addresses = [
        [100 + 12 * y + 2 * x + 6 * row + col for row in range(2) for col in range(2)]
        for y in range(2)
        for x in range(2)
    ]
    payload = gather_payload(100, *loops, output_format=1)
    meaning: Vector = {"output_format": 1, "step": 1, "base": 100, "row_loops": loops[0], "position_loops": loops[1]}
    meaning |= {"addresses": addresses, "rows": 4, "first_row": 0, "first_col": 0, "cols": 0}
    backwards = gather_payload(3, [(4, -1)], [], step=5)
    one: Vector = {"output_format": 0, "step": 5, "base": 3, "row_loops": [(4, -1)], "position_loops": []}
    one["addresses"] = [[3, 2, 1, 0]]
    result: Vector = {"output_format": 1, "output_bits": 10, "count": 2, "cols": 3, "saturated": 0, "outputs": OUTPUTS}
    return [
        request("MVM_GATHER", payload, meaning, tile=2),
        request("MVM_GATHER", backwards, one, tile=2, title="MVM_GATHER request, negative stride, one position"),
        answer("MVM_GATHER", little(0, 4) + vectors_out(OUTPUTS, 1, 10), result, tile=2),
    ]


def status_frames() -> list[Vector]:
    names = ("UNKNOWN_TYPE", "BAD_LENGTH", "OUT_OF_RANGE", "BAD_VALUE", "NOT_PROGRAMMED", "BUSY")
    refused = [
        answer("MVM", b"", {}, tile=2, status=status, title=f"status {name}") for status, name in enumerate(names, 2)
    ]
    version = answer("HELLO", b"", {}, status=1, title="status VERSION")
    return [
        version,
        *refused,
        answer("MVM", b"no supply", {"fault": "no supply"}, tile=2, status=8, title="status FAULT"),
    ]


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


def products() -> list[Vector]:
    """Sums of the matrix above, whole and in parts, through trims, converters and clipping."""
    trims = {"offset": [100, -1, 0], "gain": [16000, 24577, 65535]}
    widest = {"offset": [32767, -32768, 0], "gain": [65535] * 3}
    wide = [[127, 127, 127, 127], [-127, 127, -127, 127], [0, 1, 0, 0]]
    parts = [[127, -127], [0, 5]]
    return [
        product(INPUTS),
        product(wide),
        product(wide, trims),
        product(INPUTS, step=2, bits=8),
        product(wide, step=9, bits=8, output_format=2),
        product(wide, trims, step=33, bits=10, output_format=2),
        product(INPUTS, trims, step=7, bits=6, output_format=1),
        product(wide, widest, output_format=1),
        product(parts, trims, first_row=1, first_col=1),
        product(parts, trims, first_row=2, first_col=1, cols=1),
        product(parts, trims, first_row=0, first_col=0, cols=2, step=9, bits=10, output_format=2),
        product(parts, trims, first_row=1, first_col=2, cols=1, step=3, bits=10, output_format=2),
        product(parts, widest, first_row=1, first_col=0, cols=2, output_format=1),
        product([[127]], widest, first_row=3, first_col=2, cols=1, step=2, bits=8, output_format=2),
    ]


def product(inputs: list[list[int]], trims: dict[str, list[int]] | None = None, **how: int) -> Vector:
    how = {"first_row": 0, "first_col": 0, "cols": 0, "step": 1, "bits": 0, "output_format": 0, **how}
    tile = Tile(WEIGHTS)
    if trims:
        tile.offset, tile.gain = trims["offset"], trims["gain"]
    outputs, saturated = tile.multiply(inputs, **how)
    how["output_bits"] = how.pop("bits")
    known: Vector = {"weights": WEIGHTS, "offset": tile.offset, "gain": tile.gain, "inputs": inputs}
    return {**known, **how, "outputs": outputs, "saturated": saturated}


def main(folder: Path) -> None:
    files = {
        "frames": link_frames() + state_frames() + product_frames() + status_frames(),
        "malformed": malformed(),
        "formats": formats(),
        "products": products(),
        "exchanges": exchanges(),
    }
    for name, vectors in files.items():
        text = ",\n".join(json.dumps(vector, ensure_ascii=False) for vector in vectors)
        (folder / f"{name}.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
