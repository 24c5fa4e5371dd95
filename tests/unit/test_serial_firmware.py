"""The reference firmware, as a process under sanitizers and under QEMU, against an integer reference.

The frames are written here, apart from the package's own codec, so that an error common to both cannot hide.
"""

import itertools
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FIRMWARE = ROOT / "backends" / "pimcal_serial" / "firmware"
VECTORS = ROOT / "tests" / "vectors"
HELLO, ECHO, SINK = 0x01, 0x02, 0x03
PROGRAM, READBACK, MVM, READ, SELFTEST, GET_TRIM, SET_TRIM, STATS, BAUD, RESET = range(0x10, 0x1A)
WRITE_BUFFER, MVM_GATHER, LOG, BOOT = 0x20, 0x21, 0x70, 0x71
OK, VERSION, UNKNOWN_TYPE, BAD_LENGTH, OUT_OF_RANGE, BAD_VALUE, NOT_PROGRAMMED = range(7)
INT8, INT4, ZERO_SKIPPING = range(3)
INT32, INT16, PACKED = range(3)
NO_TILE = 0xFFFF
ANSWER_S = 20.0
TAGS = {"received": 1, "dropped": 2, "other_version": 3, "replayed": 4, "vectors": 5, "weights": 6, "sent": 7}

needs_compiler = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="needs cc and make")
needs_qemu = pytest.mark.skipif(
    not (shutil.which("qemu-system-arm") and shutil.which("arm-none-eabi-gcc") and shutil.which("make")),
    reason="needs qemu-system-arm, arm-none-eabi-gcc and make",
)


def stuffed(data):
    out, pieces = b"", data.split(b"\0")
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        while len(piece) > 254 or (len(piece) == 254 and not last):
            out, piece = out + b"\xff" + piece[:254], piece[254:]
        out += bytes([len(piece) + 1]) + piece
    return out


def unstuffed(data):
    out, at = b"", 0
    while at < len(data):
        code = data[at]
        out += data[at + 1 : at + code]
        at += code
        assert at <= len(data)
        out += b"\0" if code < 255 and at < len(data) else b""
    return out


def frame(kind, sequence, tile=NO_TILE, payload=b"", version=1):
    body = struct.pack("<BBHHBB", version, kind, sequence, tile, 0, 0) + payload
    return stuffed(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


class Answer:
    def __init__(self, data):
        assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
        version, self.kind, self.sequence, self.tile, self.status, _ = struct.unpack("<BBHHBB", data[:8])
        self.payload = data[8:-4]
        assert version == 1

    def tlvs(self, skip=0):
        values, at = {}, skip
        while at < len(self.payload):
            tag, size = self.payload[at : at + 2]
            values[tag] = self.payload[at + 2 : at + 2 + size]
            at += 2 + size
        return values


def number(tlvs, tag):
    return int.from_bytes(tlvs[tag], "little")


class Host:
    """Asks a board over file descriptors, one request at a time unless told otherwise."""

    def __init__(self, reading, writing):
        self._reading, self._writing, self._bytes, self._sequence = reading, writing, b"", 0
        self._programming = 0

    def send(self, data):
        while data:
            data = data[os.write(self._writing, data) :]

    def receive(self):
        """The next frame."""
        return Answer(unstuffed(self.receive_bytes()[:-1]))

    def receive_bytes(self):
        """The next frame as it came over the line, with the zero behind it."""
        deadline = time.monotonic() + ANSWER_S
        while True:
            piece, zero, rest = self._bytes.partition(b"\0")
            if zero:
                self._bytes = rest
                if piece:
                    return piece + zero
                continue
            left = deadline - time.monotonic()
            assert select.select([self._reading], [], [], max(0, left))[0], "no answer"
            arrived = os.read(self._reading, 65536)
            assert arrived, "the board hung up"
            self._bytes += arrived

    def number(self):
        self._sequence = self._sequence % 65535 + 1
        return self._sequence

    def ask(self, kind, payload=b"", tile=NO_TILE):
        sequence = self.number()
        self.send(frame(kind, sequence, tile, payload))
        answer = self.receive()
        assert (answer.kind, answer.sequence, answer.tile) == (kind | 0x80, sequence, tile)
        assert answer.status == OK or not answer.payload
        return answer

    def status(self, kind, payload=b"", tile=NO_TILE):
        return self.ask(kind, payload, tile).status

    def done(self, kind, payload=b"", tile=NO_TILE):
        answer = self.ask(kind, payload, tile)
        assert answer.status == OK
        return answer.payload

    def counters(self):
        tlvs = self.ask(STATS).tlvs()
        return {name: number(tlvs, tag) for name, tag in TAGS.items()}

    def restart(self):
        self.done(RESET)
        return struct.unpack_from("<I", self.boot().payload)[0]

    def boot(self):
        answer = self.receive()
        assert (answer.kind, answer.sequence, answer.status) == (BOOT | 0x80, 0, OK)
        return answer

    def program(self, tile, weights):
        rows, cols = weights.shape
        each = max(1, 400 // cols)
        self._programming = (self._programming + 1) % 256
        for first in range(0, rows, each):
            part = weights[first : first + each]
            fields = struct.pack("<HHHHI", rows, cols, first, len(part), self._programming)
            missing = self.done(PROGRAM, fields + part.astype(np.int8).tobytes(), tile)
        assert missing == b"\0\0"


def build(folder, target="sanitize", defines=""):
    command = ["make", "-C", str(FIRMWARE), target, f"BUILD={folder}", f"DEFINES={defines}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def running(command, **streams):
    process = subprocess.Popen(command, **streams)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(ANSWER_S)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


@contextmanager
def on_tcp(program):
    with running([program, "--tcp", "0"], stdout=subprocess.PIPE, text=True) as board:
        port = int(board.stdout.readline().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Host(line.fileno(), line.fileno())
        board.send_signal(signal.SIGINT)
        assert board.wait(ANSWER_S) == 0  # a sanitizer's finding would be another code


@contextmanager
def on_pty(program, path):
    with running([program, "--pty", str(path)], stdout=subprocess.PIPE, text=True) as board:
        board.stdout.readline()
        line = os.open(path, os.O_RDWR | os.O_NOCTTY)
        try:
            yield Host(line, line)
        finally:
            os.close(line)
        board.send_signal(signal.SIGTERM)
        assert board.wait(ANSWER_S) == 0
        assert not path.is_symlink()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Sanitized programs by the width of the output converter; `narrow` has 4-bit weights and inputs."""
    folder = tmp_path_factory.mktemp("firmware")
    built = {}

    def get(output_bits, extra=""):
        key = f"{output_bits}{extra}".replace(" ", "")
        if key not in built:
            built[key] = build(folder / key, defines=f"-DPIM_OUTPUT_BITS={output_bits} {extra}")
        return built[key] / "pimboard-sanitize"

    return get


@pytest.fixture
def board(programs):
    with on_tcp(programs(0)) as host:
        yield host


@pytest.fixture
def converting_board(programs):
    with on_tcp(programs(8)) as host:
        yield host


def packed_input(form, vector):
    """One vector in an input format, written with numpy's own bit packing."""
    if form == INT8:
        return vector.astype(np.int8).tobytes()
    if form == INT4:
        nibbles = np.append(vector, [0] * (len(vector) % 2)).astype(np.uint8) & 15
        return (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()
    mask = np.packbits(vector != 0, bitorder="little").tobytes()
    return mask + vector[vector != 0].astype(np.int8).tobytes()


def unpacked_output(form, data, vectors, cols, bits):
    if form == INT32:
        return np.frombuffer(data, "<i4").reshape(vectors, cols)
    if form == INT16:
        return np.frombuffer(data, "<i2").reshape(vectors, cols).astype(np.int64)
    each = np.frombuffer(data, np.uint8).reshape(vectors, -(-cols * bits // 8))
    digits = np.unpackbits(each, axis=1, bitorder="little")
    assert not digits[:, cols * bits :].any()
    codes = digits[:, : cols * bits].reshape(vectors, cols, bits).astype(np.int64) @ (1 << np.arange(bits))
    return np.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)


def expected_outputs(weights, inputs, step=1, bits=0, form=INT32, offset=0, gain=16384):
    """Outputs and how many were clipped, in Python's unlimited integers."""
    sums = inputs.astype(object) @ weights.astype(object)
    trimmed = (sums * gain + 8192) // 16384 + offset
    magnitude = (2 * abs(trimmed) + step) // (2 * step)
    exact = np.where(trimmed < 0, -magnitude, magnitude).astype(np.int64)
    largest = 2 ** (bits - 1) - 1 if bits else 2**31 - 1 if form == INT32 else 2**15 - 1
    lowest = -largest if bits else -largest - 1
    return exact.clip(lowest, largest), int(((exact < lowest) | (exact > largest)).sum())


def mvm(rows, vectors=b"", count=1, form=INT8, out=INT32, step=1, first_row=0, first_col=0, cols=0):
    """A request's payload; `vectors` are encoded ones."""
    return struct.pack("<BBHIHHHH", form, out, count, step, first_row, rows, first_col, cols) + vectors


def multiply(host, tile, inputs, cols, form=INT8, out=INT32, step=1, bits=0, first_row=0, first_col=0, asked=0):
    """Outputs of `cols` columns, and how many were clipped; `asked`: how many columns the request names."""
    count, rows = inputs.shape
    vectors = b"".join(packed_input(form, v) for v in inputs)
    payload = mvm(rows, vectors, count, form, out, step, first_row, first_col, asked)
    answer = host.done(MVM, payload, tile)
    return unpacked_output(out, answer[4:], count, cols, bits), struct.unpack_from("<I", answer)[0]


def check_random_products(host, seed, count, largest=(256, 256), bits=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        rows, cols = (int(rng.integers(1, most + 1)) for most in largest)
        form, out = int(rng.integers(3)), int(rng.integers(3 if bits else 2))
        step = int(rng.choice([1, 2, 7, 1000, 2**24])) if bits else 1
        limit = 7 if form == INT4 else 127
        weights = rng.integers(-127, 128, (rows, cols))
        inputs = rng.integers(-limit, limit + 1, (int(rng.integers(0, 3)), rows)) * (rng.random(rows) < 0.6)
        tile = int(rng.integers(4))
        host.program(tile, weights)
        outputs, saturated = multiply(host, tile, inputs, cols, form, out, step, bits)
        expected, clipped = expected_outputs(weights, inputs, step, bits, out)
        np.testing.assert_array_equal(outputs, expected)
        assert saturated == clipped


def loops(*pairs):
    return b"".join(struct.pack("<Hi", count, stride) for count, stride in pairs)


def gather(rows, positions, base=0, out=INT32, step=1, first_row=0, first_col=0, cols=0):
    fields = struct.pack("<BBBBIIHHH", 0, out, len(rows), len(positions), step, base, first_row, first_col, cols)
    return fields + loops(*rows) + loops(*positions)


def write_buffer(host, values, address=0, form=INT8):
    fields = struct.pack("<BBHI", form, 0, len(values), address)
    host.done(WRITE_BUFFER, fields + packed_input(form, values))


def check_gathered_convolution(host, channels=3, size=8, kernel=3, stride=2, cols=5):
    rng = np.random.default_rng(5)
    images = rng.integers(-127, 128, (2, channels, size, size))
    weights = rng.integers(-127, 128, (channels * kernel * kernel, cols))
    out = (size - kernel) // stride + 1
    host.program(1, weights)
    for number, image in enumerate(images.reshape(2, -1)):
        write_buffer(host, image, 40 + number * image.size, form=number * ZERO_SKIPPING)
    windows = np.lib.stride_tricks.sliding_window_view(images, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(2 * out * out, -1)
    rows = [(channels, size * size), (kernel, size), (kernel, 1)]
    positions = [(2, channels * size * size), (out, stride * size), (out, stride)]
    answer = host.done(MVM_GATHER, gather(rows, positions, base=40), 1)
    outputs = unpacked_output(INT32, answer[4:], len(patches), cols, 0)
    np.testing.assert_array_equal(outputs, expected_outputs(weights, patches)[0])


def set_random_trims(host, tile, cols, rng):
    """Offsets and gains, as they were set."""
    offset, gain = rng.integers(-32768, 32768, cols), rng.integers(0, 65536, cols)
    pairs = zip(offset.tolist(), gain.tolist(), strict=True)
    host.done(SET_TRIM, b"".join(struct.pack("<hH", *pair) for pair in pairs), tile)
    return offset.astype(object), gain.astype(object)


def check_random_parts(host, seed, count, largest=(256, 256), bits=0):
    """A product on a part of a tile is the part of the product on the whole one, the other rows' inputs being 0."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = tuple(int(rng.integers(1, most + 1)) for most in largest)
        (top, bottom), (left, right) = (sorted(rng.choice(size + 1, 2, replace=False).tolist()) for size in shape)
        weights = rng.integers(-127, 128, shape)
        form, out = int(rng.integers(3)), int(rng.integers(3 if bits else 2))
        how = {"out": out, "step": int(rng.choice([1, 7, 1000])) if bits else 1, "bits": bits}
        limit = 7 if form == INT4 else 127
        padded = np.zeros((int(rng.integers(0, 4)), shape[0]), int)
        inputs = padded[:, top:bottom]
        inputs[:] = rng.integers(-limit, limit + 1, inputs.shape) * (rng.random(inputs.shape) < 0.6)
        host.program(3, weights)
        offset, gain = set_random_trims(host, 3, shape[1], rng)
        cols, asked = right - left, 0 if right == shape[1] else right - left
        part = {"first_row": top, "first_col": left}

        outputs, saturated = multiply(host, 3, inputs, cols, form, **how, **part, asked=asked)

        whole, _ = multiply(host, 3, padded, shape[1], form, **how)
        np.testing.assert_array_equal(outputs, whole[:, left:right])
        trims = {"offset": offset[left:right], "gain": gain[left:right]}
        exact, clipped = expected_outputs(weights[top:bottom, left:right], inputs, how["step"], bits, out, **trims)
        np.testing.assert_array_equal(outputs, exact)
        assert saturated == clipped
        write_buffer(host, inputs.ravel(), 5)
        loops = [(bottom - top, 1)], [(len(inputs), bottom - top)]
        answer = host.done(MVM_GATHER, gather(*loops, 5, out, how["step"], top, left, asked), 3)
        np.testing.assert_array_equal(unpacked_output(out, answer[4:], len(inputs), cols, bits), outputs)
        assert struct.unpack_from("<I", answer)[0] == clipped


@needs_compiler
class TestAFrame:
    def test_hello_describes_the_board(self, board):
        told = board.ask(HELLO, b"\x01\x01\x00\x13\x04test\x63\x00").tlvs()

        assert [number(told, tag) for tag in (6, 7, 8, 9, 10, 11)] == [64, 256, 256, 8, 8, 0]
        assert number(told, 16) == 0b101011  # no packed outputs without a converter, no BAUD on TCP
        assert number(told, 12) >= 64 + 4 * 256
        assert number(told, 14) >= number(told, 13) >= 1
        assert told[4] == b"REF0001"

    def test_boot_and_hello_tell_the_same_id(self, board):
        announced = board.restart()

        assert announced == number(board.ask(HELLO).tlvs(), 2)

    @pytest.mark.parametrize("length", [0, 1, 241, 242, 243, 253, 254, 255, 508, 8192])
    def test_echo_returns_every_length(self, board, length):
        rng = np.random.default_rng(length)
        for data in (bytes(length), b"\xff" * length, rng.bytes(length)):
            assert board.done(ECHO, data) == data
        assert struct.unpack("<I", board.done(SINK, bytes(length)))[0] == length

    def test_a_code_for_an_empty_last_piece_is_understood(self, board):
        # 254 bytes without a zero at the very end: some encoders send an empty piece behind them.
        header = struct.pack("<BBHHBB", 1, ECHO, 0x0101, NO_TILE, 0, 0)
        fitting = (header + b"\7" * n for n in range(260))
        bodies = (body + struct.pack("<I", zlib.crc32(body)) for body in fitting)
        data = next(body for body in bodies if stuffed(body)[-255:-254] == b"\xff" and 0 not in body[-254:])

        board.send(stuffed(data) + b"\x01\0")

        assert board.receive().payload == data[8:-4]

    def test_a_last_piece_that_reaches_past_the_end_is_no_frame(self, board):
        whole = frame(ECHO, 0x0101, payload=b"")  # flags are the last zero, so the last code stands before the CRC
        assert whole[-6] == 5

        board.send(whole[:-6] + b"\6" + whole[-5:])

        assert board.done(ECHO, b"next") == b"next"
        assert board.counters()["dropped"] == 1

    def test_garbage_between_frames_is_dropped_and_counted(self, board):
        rng = np.random.default_rng(1)
        for _ in range(300):
            board.send(rng.bytes(int(rng.integers(1, 400))) + b"\0")
            assert board.done(ECHO, b"here") == b"here"
        assert board.counters()["dropped"] >= 300

    def test_a_frame_longer_than_max_payload_is_answered(self, board):
        assert board.status(ECHO, bytes(8193)) == BAD_LENGTH
        assert board.status(ECHO, b"\1" * 100_000) == BAD_LENGTH
        assert board.done(ECHO, b"next") == b"next"

    def test_another_version_is_told_ours_once_a_second(self, board):
        board.send(frame(0x55, 7, 3, b"?", version=2) + frame(0x55, 8, 3, b"?", version=0))

        answer = board.receive()

        assert (answer.kind, answer.sequence, answer.status, answer.payload) == (HELLO | 0x80, 7, VERSION, b"")
        assert board.done(ECHO, b"next") == b"next"
        assert board.counters()["other_version"] == 2

    def test_an_answer_that_comes_back_is_not_answered(self, board):
        board.send(frame(ECHO | 0x80, 9, payload=b"mine"))

        assert board.done(ECHO, b"next") == b"next"

    def test_the_vectors_of_requests_are_understood(self, board):
        vectors = {v["name"]: v for v in json.loads((VECTORS / "frames.json").read_text())}
        for name in ("HELLO request", "ECHO request", "ECHO of nothing", "ECHO without zeros", "ECHO of zeros"):
            board.send(bytes.fromhex(vectors[name]["hex"]))
            answer = board.receive()
            assert (answer.status, answer.sequence) == (OK, vectors[name]["frame"]["sequence"])
            if name.startswith("ECHO"):
                assert answer.payload.hex() == vectors[name]["frame"]["payload"]
        for name in ("PROGRAM", "WRITE_BUFFER", "BAUD", "SELFTEST", "SINK", "READ", "RESET"):
            requests = [v for v in vectors.values() if v["name"].startswith(f"{name} request")]
            assert requests
            for vector in requests:
                board.send(bytes.fromhex(vector["hex"]))
                assert board.receive().status == (OUT_OF_RANGE if name == "BAUD" else OK)

    @pytest.mark.parametrize("vector", json.loads((VECTORS / "malformed.json").read_text()), ids=lambda v: v["name"])
    def test_the_malformed_vectors_are_counted(self, board, vector):
        before = board.counters()
        board.send(bytes.fromhex(vector["hex"]))
        if vector["counted"] == "other_version":
            assert board.receive().status == VERSION
        after = board.counters()

        counted = {name for name in ("dropped", "other_version") if after[name] > before[name]}
        assert counted == {vector["counted"]} - {"nothing"}


@needs_compiler
class TestPrograms:
    def test_weights_in_any_order_are_read_back(self, board):
        weights = np.random.default_rng(0).integers(-127, 128, (200, 33))
        missing = 200
        for first, count in ((150, 50), (0, 100), (120, 30), (100, 20)):
            part = weights[first : first + count].astype(np.int8).tobytes()
            assert board.status(MVM, mvm(1, count=0), 5) == NOT_PROGRAMMED
            missing -= count
            answer = board.done(PROGRAM, struct.pack("<HHHHI", 200, 33, first, count, 1) + part, 5)
            assert struct.unpack("<H", answer)[0] == missing

        read = board.done(READBACK, struct.pack("<HH", 20, 170), 5)

        assert struct.unpack_from("<HH", read) == (200, 33)
        np.testing.assert_array_equal(np.frombuffer(read[4:], np.int8).reshape(170, 33), weights[20:190])
        assert board.counters()["weights"] == 200 * 33

    def test_id_0_begins_a_first_programming_like_any_other(self, board):
        assert board.done(PROGRAM, struct.pack("<HHHHI", 2, 1, 0, 1, 0) + b"\1", 0) == b"\1\0"

    def test_rows_written_twice_are_counted_once(self, board):
        fields = struct.pack("<HHHHI", 2, 1, 0, 1, 3)

        assert board.done(PROGRAM, fields + b"\1", 0) == b"\1\0"
        assert board.done(PROGRAM, fields + b"\2", 0) == b"\1\0"

    def test_a_new_id_empties_the_tile_and_its_trims(self, board):
        board.program(0, np.ones((2, 1), int))
        board.done(SET_TRIM, struct.pack("<hH", -5, 99), 0)
        assert board.done(GET_TRIM, tile=0) == struct.pack("<hH", -5, 99)

        assert board.done(PROGRAM, struct.pack("<HHHHI", 2, 1, 0, 1, 255) + b"\1", 0) == b"\1\0"
        assert board.status(READBACK, struct.pack("<HH", 0, 1), 0) == NOT_PROGRAMMED
        assert board.done(PROGRAM, struct.pack("<HHHHI", 2, 1, 1, 1, 255) + b"\1", 0) == b"\0\0"
        assert board.done(GET_TRIM, tile=0) == struct.pack("<hH", 0, 16384)

    def test_refused_weights_change_nothing(self, board):
        board.program(0, np.ones((2, 2), int))

        assert board.status(PROGRAM, struct.pack("<HHHHI", 1, 2, 0, 1, 254) + b"\1\x80", 0) == BAD_VALUE

        assert board.done(READBACK, struct.pack("<HH", 0, 2), 0)[4:] == b"\1\1\1\1"

    def test_selftest_leaves_weights_alone(self, board):
        weights = np.random.default_rng(4).integers(-127, 128, (256, 16))
        board.program(63, weights)

        assert struct.unpack("<HH", board.done(SELFTEST)) == (64, 0)

        assert board.done(READBACK, struct.pack("<HH", 0, 256), 63)[4:] == weights.astype(np.int8).tobytes()


@needs_compiler
class TestProducts:
    def test_random_products_without_a_converter_are_exact(self, board):
        check_random_products(board, 1, 60)

    def test_random_products_with_a_converter_are_rounded_and_clipped(self, converting_board):
        check_random_products(converting_board, 2, 60, bits=8)

    @pytest.mark.parametrize("bits", [5, 10, 16])
    def test_other_converters_pack_their_codes(self, programs, bits):
        with on_tcp(programs(bits)) as host:
            check_random_products(host, bits, 15, bits=bits)

    def test_the_worst_sums_are_exact(self, board):
        board.program(0, np.full((256, 256), -127))

        outputs, _ = multiply(board, 0, np.full((2, 256), -127), 256)

        assert (outputs == 256 * 127 * 127).all()

    def test_halves_are_rounded_away_from_zero(self, converting_board):
        converting_board.program(0, np.array([[1, -1, 3, -3, 5, -5]]))

        outputs, saturated = multiply(converting_board, 0, np.array([[1]]), 6, step=2, bits=8)

        assert outputs.tolist() == [[1, -1, 2, -2, 3, -3]]
        assert saturated == 0

    def test_outputs_too_large_for_int16_are_clipped_and_counted(self, board):
        board.program(0, np.array([[127, -127, 1]] * 4))

        outputs, saturated = multiply(board, 0, np.full((1, 4), 127), 3, out=INT16)

        assert outputs.tolist() == [[32767, -32768, 508]]
        assert saturated == 2

    def test_trims_act_on_every_sum(self, board):
        rng = np.random.default_rng(6)
        weights, inputs = rng.integers(-127, 128, (256, 200)), rng.integers(-127, 128, (4, 256))
        offset, gain = rng.integers(-32768, 32768, 200), rng.integers(0, 65536, 200)
        board.program(2, weights)
        trims = np.stack([offset.astype("<i2").view("<u2"), gain.astype("<u2")], axis=1).astype("<u2").tobytes()

        board.done(SET_TRIM, trims, 2)

        assert board.done(GET_TRIM, tile=2) == trims
        outputs, _ = multiply(board, 2, inputs, 200)
        expected, _ = expected_outputs(weights, inputs, offset=offset.astype(object), gain=gain.astype(object))
        np.testing.assert_array_equal(outputs, expected)

    @pytest.mark.parametrize("vector", json.loads((VECTORS / "products.json").read_text()))
    def test_the_product_vectors_hold(self, programs, vector):
        bits, form = vector["output_bits"], vector["output_format"]
        weights, inputs = np.array(vector["weights"]), np.array(vector["inputs"])
        with on_tcp(programs(bits)) as host:
            host.program(0, weights)
            trims = zip(vector["offset"], vector["gain"], strict=True)
            host.done(SET_TRIM, b"".join(struct.pack("<hH", *trim) for trim in trims), 0)
            cols = len(vector["outputs"][0])
            part = vector["first_row"], vector["first_col"], vector["cols"]
            outputs, saturated = multiply(host, 0, inputs, cols, INT8, form, vector["step"], bits, *part)

        assert outputs.tolist() == vector["outputs"]
        assert saturated == vector["saturated"]

    def test_the_input_format_vectors_hold(self, board):
        vectors = [v for v in json.loads((VECTORS / "formats.json").read_text()) if v["direction"] == "in"]
        assert vectors
        for vector in vectors:
            values = np.array(vector["values"])
            board.program(0, np.eye(values.shape[1], dtype=int))
            count, rows = values.shape
            answer = board.done(MVM, mvm(rows, bytes.fromhex(vector["hex"]), count, vector["format"]), 0)
            assert np.frombuffer(answer[4:], "<i4").tolist() == values.reshape(-1).tolist()

    def test_the_packed_output_vectors_hold(self, programs):
        vectors = [v for v in json.loads((VECTORS / "formats.json").read_text()) if v["direction"] == "out"]
        vectors = [v for v in vectors if v["format"] == PACKED and v["bits"] in (8, 10, 16)]
        assert len(vectors) >= 3
        for vector in vectors:
            with on_tcp(programs(vector["bits"])) as host:
                assert packed_offsets(host, vector["values"]) == vector["hex"]


def exchanges():
    """Steps of the vectors' conversations, each with a board that has just started."""
    steps = json.loads((VECTORS / "exchanges.json").read_text())
    return [list(group) for _, group in itertools.groupby(steps, lambda step: step["exchange"])]


def check_exchange(host, steps):
    for step in steps:
        host.send(bytes.fromhex(step["request"]))
        assert (step["says"], host.receive_bytes().hex()) == (step["says"], step["answer"])


@needs_compiler
class TestParts:
    def test_random_parts_are_parts_of_the_whole(self, board):
        check_random_parts(board, 11, 60)

    def test_random_parts_are_converted_like_the_whole(self, converting_board):
        check_random_parts(converting_board, 12, 60, bits=8)

    def test_small_tiles_have_parts_at_every_edge(self, board):
        check_random_parts(board, 13, 60, (3, 3))

    @pytest.mark.parametrize("steps", exchanges(), ids=lambda steps: steps[0]["exchange"])
    def test_the_exchanges_of_the_vectors_are_answered_byte_by_byte(self, programs, steps):
        with on_tcp(programs(steps[0]["output_bits"])) as host:
            check_exchange(host, steps)

    def test_a_refused_part_computes_nothing(self, board):
        board.program(1, np.ones((4, 3), int))
        before = board.counters()["vectors"]

        assert board.status(MVM, mvm(2, bytes(2), first_row=3), 1) == OUT_OF_RANGE
        assert board.status(MVM_GATHER, gather([(2, 1)], [], first_row=3), 1) == OUT_OF_RANGE

        assert board.counters()["vectors"] == before


def packed_offsets(host, rows):
    """Any int16 is an output where the sum is 0 and the column's offset is that number."""
    packed = ""
    for row in rows:
        host.program(0, np.zeros((1, len(row)), int))
        host.done(SET_TRIM, b"".join(struct.pack("<hH", value, 0) for value in row), 0)
        packed += host.done(MVM, mvm(1, b"\0", out=PACKED), 0)[4:].hex()
    return packed


@needs_compiler
class TestTheInputBuffer:
    def test_a_convolution_is_gathered(self, board):
        check_gathered_convolution(board)

    def test_what_was_not_written_is_zero_and_strides_may_be_negative(self, board):
        board.program(0, np.eye(4, dtype=int))
        write_buffer(board, np.array([1, 2, 3]), 100, INT4)

        answer = board.done(MVM_GATHER, gather([(4, -1)], [(2, 1)], base=102), 0)

        assert np.frombuffer(answer[4:], "<i4").tolist() == [3, 2, 1, 0, 0, 3, 2, 1]

    def test_no_loop_is_one_row_and_one_position(self, board):
        board.program(0, np.array([[3]]))
        write_buffer(board, np.array([7]))

        assert board.done(MVM_GATHER, gather([], []), 0) == struct.pack("<Ii", 0, 21)

    def test_loops_without_a_turn_give_no_vectors(self, board):
        board.program(0, np.array([[3]]))

        assert board.done(MVM_GATHER, gather([], [(0, 5), (3, 2**31 - 1)]), 0) == bytes(4)

    @pytest.mark.parametrize(
        ("rows", "positions", "base", "out"),
        [
            ([(4, 1)], [], 1048576 - 3, INT32),
            ([(4, -1)], [], 2, INT32),
            ([(4, 1)], [(2, -2147483648)], 2**31, INT32),
            ([(4, 1)], [(65535, 65535)] * 3, 0, INT32),
            ([(4, 1)], [(65535, 0)] * 3, 0, INT32),
            ([(5, 1)], [], 0, INT32),
            ([(32768, 0), (32768, 0), (4, 0)], [], 0, INT32),
            ([(0, 1)], [], 0, INT32),
            ([(4, 1)] + [(1, 0)] * 3, [], 0, INT32),
            ([(4, 1)], [], 0, PACKED),
            ([(4, 1)], [], 2**32 - 1, INT32),
        ],
    )
    def test_what_leaves_the_buffer_or_the_tile_is_refused(self, board, rows, positions, base, out):
        board.program(0, np.eye(4, dtype=int))

        assert board.status(MVM_GATHER, gather(rows, positions, base, out), 0) == OUT_OF_RANGE
        assert board.done(MVM_GATHER, gather([(4, 1)], []), 0) == bytes(20)

    def test_a_refused_write_changes_nothing(self, board):
        board.program(0, np.eye(4, dtype=int))
        write_buffer(board, np.array([1, 2, 3, 4]))

        assert board.status(WRITE_BUFFER, struct.pack("<BBHI", 0, 0, 4, 0) + b"\5\6\7\x80") == BAD_VALUE
        assert board.status(WRITE_BUFFER, struct.pack("<BBHI", 0, 0, 4, 1048573) + b"\5\6\7\7") == OUT_OF_RANGE

        answer = board.done(MVM_GATHER, gather([(4, 1)], []), 0)
        assert np.frombuffer(answer[4:], "<i4").tolist() == [1, 2, 3, 4]


def refusals():
    fields = struct.pack
    return [
        ("unknown type", 0x7E, b"", NO_TILE, UNKNOWN_TYPE),
        ("type 0", 0, b"", NO_TILE, UNKNOWN_TYPE),
        ("HELLO with a torn TLV", HELLO, b"\x13\x05ab", NO_TILE, BAD_LENGTH),
        ("READ with a payload", READ, b"x", NO_TILE, BAD_LENGTH),
        ("STATS with a payload", STATS, b"x", NO_TILE, BAD_LENGTH),
        ("SELFTEST with a payload", SELFTEST, b"x", NO_TILE, BAD_LENGTH),
        ("RESET with a payload", RESET, b"x", NO_TILE, BAD_LENGTH),
        ("BAUD without a rate", BAUD, b"", NO_TILE, BAD_LENGTH),
        ("BAUD where there is none", BAUD, fields("<I", 9600), NO_TILE, OUT_OF_RANGE),
        ("PROGRAM too short", PROGRAM, bytes(8), 0, BAD_LENGTH),
        ("PROGRAM without weights", PROGRAM, fields("<HHHHI", 4, 3, 0, 1, 90), 0, BAD_LENGTH),
        ("PROGRAM with more", PROGRAM, fields("<HHHHI", 4, 3, 0, 1, 90) + bytes(4), 0, BAD_LENGTH),
        ("PROGRAM no such tile", PROGRAM, fields("<HHHHI", 4, 3, 0, 1, 90) + bytes(3), 64, OUT_OF_RANGE),
        ("PROGRAM too many rows", PROGRAM, fields("<HHHHI", 257, 1, 0, 1, 90) + bytes(1), 0, OUT_OF_RANGE),
        ("PROGRAM too many columns", PROGRAM, fields("<HHHHI", 1, 257, 0, 1, 90) + bytes(257), 0, OUT_OF_RANGE),
        ("PROGRAM no rows", PROGRAM, fields("<HHHHI", 0, 1, 0, 0, 90), 0, OUT_OF_RANGE),
        ("PROGRAM behind the rows", PROGRAM, fields("<HHHHI", 4, 1, 3, 2, 90) + bytes(2), 0, OUT_OF_RANGE),
        ("READBACK too short", READBACK, b"\0\0\0", 1, BAD_LENGTH),
        ("READBACK behind the rows", READBACK, fields("<HH", 3, 2), 1, OUT_OF_RANGE),
        ("READBACK of an empty tile", READBACK, fields("<HH", 0, 1), 9, NOT_PROGRAMMED),
        ("GET_TRIM of an empty tile", GET_TRIM, b"", 9, NOT_PROGRAMMED),
        ("GET_TRIM with a payload", GET_TRIM, b"x", 1, BAD_LENGTH),
        ("SET_TRIM of an empty tile", SET_TRIM, bytes(4), 9, NOT_PROGRAMMED),
        ("SET_TRIM for a column less", SET_TRIM, bytes(8), 1, BAD_LENGTH),
        ("MVM too short", MVM, bytes(15), 1, BAD_LENGTH),
        ("MVM no tile", MVM, mvm(4, bytes(4)), NO_TILE, OUT_OF_RANGE),
        ("MVM an input short", MVM, mvm(4, bytes(3)), 1, BAD_LENGTH),
        ("MVM an input more", MVM, mvm(4, bytes(5)), 1, BAD_LENGTH),
        ("MVM -128", MVM, mvm(4, b"\0\0\0\x80"), 1, BAD_VALUE),
        ("MVM input format", MVM, mvm(4, bytes(4), form=3), 1, OUT_OF_RANGE),
        ("MVM output format", MVM, mvm(4, bytes(4), out=2), 1, OUT_OF_RANGE),
        ("MVM step 0", MVM, mvm(4, bytes(4), step=0), 1, OUT_OF_RANGE),
        ("MVM step 2 without a converter", MVM, mvm(4, bytes(4), step=2), 1, OUT_OF_RANGE),
        ("MVM longer answer than max_payload", MVM, mvm(4, bytes(4000), count=1000), 1, OUT_OF_RANGE),
        ("MVM mask without its values", MVM, mvm(4, b"\x03\1", form=2), 1, BAD_LENGTH),
        ("MVM without a mask", MVM, mvm(4, form=2), 1, BAD_LENGTH),
        ("MVM surplus mask bits", MVM, mvm(4, b"\x11\1", form=2), 1, BAD_VALUE),
        ("MVM zero-skipping -128", MVM, mvm(4, b"\x01\x80", form=2), 1, BAD_VALUE),
        ("MVM surplus int4 bits", MVM, mvm(3, b"\0\x10", form=1), 2, BAD_VALUE),
        ("WRITE_BUFFER too short", WRITE_BUFFER, bytes(7), NO_TILE, BAD_LENGTH),
        ("WRITE_BUFFER a value short", WRITE_BUFFER, fields("<BBHI", 0, 0, 2, 0) + b"\1", NO_TILE, BAD_LENGTH),
        ("WRITE_BUFFER a value more", WRITE_BUFFER, fields("<BBHI", 0, 0, 2, 0) + bytes(3), NO_TILE, BAD_LENGTH),
        ("WRITE_BUFFER format", WRITE_BUFFER, fields("<BBHI", 3, 0, 2, 0) + bytes(2), NO_TILE, OUT_OF_RANGE),
        ("MVM_GATHER too short", MVM_GATHER, bytes(17), 1, BAD_LENGTH),
        ("MVM_GATHER a loop short", MVM_GATHER, gather([(4, 1)], [(2, 1)])[:-1], 1, BAD_LENGTH),
        ("MVM_GATHER on an empty tile", MVM_GATHER, gather([(4, 1)], []), 9, NOT_PROGRAMMED),
    ]


@needs_compiler
class TestRefusals:
    @pytest.mark.parametrize(("kind", "payload", "tile", "status"), [pytest.param(*r[1:], id=r[0]) for r in refusals()])
    def test_a_wrong_request_gets_its_status_and_changes_nothing(self, board, kind, payload, tile, status):
        weights = np.arange(-6, 6).reshape(4, 3)
        board.program(1, weights)
        board.program(2, weights[:3])

        assert board.status(kind, payload, tile) == status

        outputs, _ = multiply(board, 1, np.eye(4, dtype=int), 3)
        np.testing.assert_array_equal(outputs, weights)
        assert board.status(MVM, mvm(1, count=0), 0) == NOT_PROGRAMMED

    def test_narrow_weights_and_inputs_have_narrow_limits(self, programs):
        with on_tcp(programs(0, "-DPIM_WEIGHT_BITS=4 -DPIM_INPUT_BITS=4")) as host:
            program = struct.pack("<HHHHI", 1, 1, 0, 1, 1)
            assert host.status(PROGRAM, program + b"\x08", 0) == BAD_VALUE
            assert host.status(PROGRAM, program + b"\xf9", 0) == OK
            for form, value, status in ((INT8, 8, BAD_VALUE), (INT4, 8, BAD_VALUE), (INT8, 7, OK), (INT4, 9, OK)):
                assert host.status(MVM, mvm(1, bytes([value]), form=form), 0) == status


@needs_compiler
class TestRepetition:
    def test_a_request_sent_twice_is_carried_out_once(self, board):
        board.program(0, np.array([[2]]))
        request = frame(MVM, board.number(), 0, mvm(1, bytes([21])))
        before = board.counters()

        board.send(request + request)

        assert board.receive().payload == board.receive().payload == struct.pack("<Ii", 0, 42)
        after = board.counters()
        assert (after["vectors"], after["replayed"]) == (before["vectors"] + 1, before["replayed"] + 1)

    def test_a_repetition_gets_the_first_answer_even_if_things_changed(self, board):
        board.program(0, np.array([[2]]))
        request = frame(MVM, board.number(), 0, mvm(1, bytes([21])))
        board.send(request)
        board.receive()
        board.program(0, np.array([[3]]))

        board.send(request)

        assert board.receive().payload == struct.pack("<Ii", 0, 42)

    def test_the_same_number_with_other_bytes_is_another_request(self, board):
        board.program(0, np.array([[2]]))
        for value in (1, 2):
            board.send(frame(MVM, 500, 0, mvm(1, bytes([value]))))
            assert board.receive().payload == struct.pack("<Ii", 0, 2 * value)

    def test_exactly_the_last_answers_are_kept(self, board):
        replay = number(board.ask(HELLO).tlvs(), 14)
        board.program(0, np.array([[2]]))
        requests = [frame(MVM, 1000 + i, 0, mvm(1, bytes([i]))) for i in range(replay + 1)]
        for request in requests:
            board.send(request)
            board.receive()

        for request, replayed in ((requests[1], 1), (requests[-1], 1), (requests[0], 0)):
            before = board.counters()["replayed"]
            board.send(request)
            assert board.receive().status == OK
            assert board.counters()["replayed"] - before == replayed

    def test_a_window_is_answered_in_order(self, board):
        window = number(board.ask(HELLO).tlvs(), 13)
        board.send(b"".join(frame(ECHO, 2000 + i, payload=bytes([i]) * 300) for i in range(window)))

        assert [board.receive().sequence for _ in range(window)] == list(range(2000, 2000 + window))


@needs_compiler
class TestStarts:
    def test_a_reset_gives_a_new_id_and_forgets_everything(self, board):
        ids = [number(board.ask(HELLO).tlvs(), 2)]
        board.program(0, np.array([[2]]))
        write_buffer(board, np.array([5]))
        request = frame(SET_TRIM, board.number(), 0, struct.pack("<hH", 0, 1))
        board.send(request)
        board.receive()

        ids += [board.restart() for _ in range(20)]

        assert all(first != second for first, second in itertools.pairwise(ids))
        board.send(request)
        assert board.receive().status == NOT_PROGRAMMED
        board.program(0, np.array([[2]]))
        assert board.done(MVM_GATHER, gather([], []), 0) == bytes(8)

    def test_a_pty_board_announces_itself_and_computes(self, programs, tmp_path):
        with on_pty(programs(0), tmp_path / "line") as host:
            announced = host.boot()
            assert announced.payload == host.ask(HELLO).tlvs()[2]
            assert host.done(ECHO, bytes(range(256)) * 8) == bytes(range(256)) * 8
            check_random_products(host, 3, 10)

    def test_a_path_that_exists_is_not_replaced(self, programs, tmp_path):
        (tmp_path / "line").write_text("mine")

        done = subprocess.run(
            [programs(0), "--pty", str(tmp_path / "line")], capture_output=True, text=True, check=False
        )

        assert done.returncode == 1
        assert "exists" in done.stderr
        assert (tmp_path / "line").read_text() == "mine"

    @pytest.mark.parametrize("arguments", [[], ["--tcp"], ["--tcp", "70000"], ["--tcp", "x"], ["--baud", "1"]])
    def test_wrong_arguments_are_refused(self, programs, arguments):
        assert subprocess.run([programs(0), *arguments], capture_output=True, check=False).returncode == 64

    def test_the_next_host_finds_the_board_as_the_last_left_it(self, programs):
        with running([programs(0), "--tcp", "0"], stdout=subprocess.PIPE, text=True) as process:
            address = ("127.0.0.1", int(process.stdout.readline().rpartition(":")[2]))
            with socket.create_connection(address) as line:
                Host(line.fileno(), line.fileno()).program(0, np.array([[2]]))
                line.sendall(b"\x20torn")
            with socket.create_connection(address) as line:
                host = Host(line.fileno(), line.fileno())
                host.send(b"\0")
                assert multiply(host, 0, np.array([[3]]), 1)[0] == 6

    def test_the_program_for_use_is_built_without_a_warning(self, tmp_path):
        with on_tcp(build(tmp_path, "native") / "pimboard") as host:
            check_random_products(host, 9, 20)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return build(tmp_path_factory.mktemp("qemu"), "qemu")


@contextmanager
def emulated(images, machine):
    """A board under QEMU behind pipes: QEMU would turn newlines on a terminal into two bytes."""
    image = images / f"pimboard-{ {'mps2-an385': 'mps2', 'lm3s6965evb': 'lm3s6965'}[machine] }.elf"
    command = ["qemu-system-arm", "-M", machine, "-kernel", str(image), "-display", "none", "-monitor", "none"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with running([*command, "-serial", "stdio"], **streams) as process:
        host = Host(process.stdout.fileno(), process.stdin.fileno())
        host.announced = host.boot().payload
        yield host


@needs_qemu
@pytest.mark.parametrize(("machine", "largest"), [("mps2-an385", (256, 256)), ("lm3s6965evb", (64, 64))])
class TestUnderQemu:
    def test_products_are_exact(self, images, machine, largest):
        with emulated(images, machine) as host:
            check_random_products(host, 4, 8, largest)
            check_random_parts(host, 14, 8, largest)
            check_gathered_convolution(host)

    def test_the_exchanges_of_the_vectors_are_answered_byte_by_byte(self, images, machine, largest):
        exact = [steps for steps in exchanges() if not steps[0]["output_bits"]]
        assert len(exact) == 2
        with emulated(images, machine) as host:
            for steps in exact:
                check_exchange(host, steps)
                host.restart()

    def test_requests_of_a_whole_window_are_answered(self, images, machine, largest):
        with emulated(images, machine) as host:
            told = host.ask(HELLO).tlvs()
            window, length = number(told, 13), number(told, 12)
            sent = [np.random.default_rng(i).bytes(length) for i in range(window)]
            host.send(b"".join(frame(ECHO, 10 + i, payload=data) for i, data in enumerate(sent)))
            assert [host.receive().payload for _ in range(window)] == sent

    def test_every_start_has_another_id(self, images, machine, largest):
        with emulated(images, machine) as host:
            ids = [struct.unpack("<I", host.announced)[0], host.restart(), host.restart()]
        with emulated(images, machine) as host:
            ids.append(number(host.ask(HELLO).tlvs(), 2))
        assert len(set(ids)) == 4

    def test_the_rate_is_changed(self, images, machine, largest):
        with emulated(images, machine) as host:
            assert number(host.ask(HELLO).tlvs(), 16) & 1 << 4
            assert host.status(BAUD, struct.pack("<I", 921600)) == OK
            assert host.done(ECHO, b"new rate") == b"new rate"
            assert host.status(BAUD, struct.pack("<I", 2**32 - 1)) == OUT_OF_RANGE
            assert host.status(BAUD, struct.pack("<I", 0)) == OUT_OF_RANGE
            time.sleep(1.2)  # more than the trial of a new rate
            assert host.done(ECHO, b"still") == b"still"

    def test_a_rate_that_is_not_used_is_given_up(self, images, machine, largest):
        with emulated(images, machine) as host:
            assert host.status(BAUD, struct.pack("<I", 921600)) == OK
            warning = host.receive()
            assert (warning.kind, warning.sequence, warning.payload[:1]) == (LOG | 0x80, 0, b"\2")
            assert host.done(ECHO, b"old rate") == b"old rate"

    def test_selftest_and_garbage(self, images, machine, largest):
        with emulated(images, machine) as host:
            tested, failed = struct.unpack("<HH", host.done(SELFTEST))
            assert (tested > 0, failed) == (True, 0)
            rng = np.random.default_rng(8)
            for _ in range(20):
                host.send(rng.bytes(int(rng.integers(1, 200))) + b"\0")
                assert host.done(ECHO, b"here") == b"here"
