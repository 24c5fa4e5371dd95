"""Traces of sessions with a board: what is in them, and that a board made from one answers as the real one did."""

from __future__ import annotations

import base64
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pimcal
from pimcal.errors import ConfigError, DataError, PimcalError, StorageError, UsageError
from pimcal.patches import Loop, TilePart
from pimcal.profile import load_profile
from pimcal_serial.connection import Connection
from pimcal_serial.driver import Driver
from pimcal_serial.frames import ANSWER, Frame, MessageType, Status, encode_frame
from pimcal_serial.gather import Overlapping
from pimcal_serial.messages import BoardInfo, Boot, Log
from pimcal_serial.recording import Recording, sightings
from pimcal_serial.report import board_report, restart
from pimcal_serial.requests import Request
from pimcal_serial.settings import SerialSettings
from pimcal_serial.simulator.ports import PtyPort
from pimcal_serial.simulator.serve import serving
from pimcal_serial.simulator.settings import BoardSettings
from pimcal_serial.trace import RECEIVED, SENT, Entry, Trace, TracedTransport, TraceWriter, traced
from pimcal_serial.trace_report import trace_report
from pimcal_serial.transport import LinkError

SMALL = {"tiles": 3, "rows": 40, "cols": 24, "max_payload": 512, "buffer_bytes": 1500}
NOISY = {"noise": "mul", "eta0": 0.1, "seed": 1}  # a product is never the same twice
FAULTS = {
    "lost": 0.02,
    "corrupted": 0.02,
    "duplicated": 0.02,
    "reordered": 0.01,
    "truncated": 0.01,
    "byte_errors": 1e-4,
}
Results = list[np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def settings_of(port: str, **more: Any) -> SerialSettings:
    part = {"port": port, "baud": 12_000_000, "margin_s": 0.05, **more}
    return SerialSettings.model_validate_json(json.dumps(part))


def board_of(**simulator: Any) -> BoardSettings:
    return BoardSettings.model_validate_json(json.dumps({**SMALL, **simulator}))


def work(port: str, seed: int = 0, **more: Any) -> Results:
    """Programs tiles, multiplies, gathers and reads back, twice; the inputs grow, so that the step has to."""
    rng, results = np.random.default_rng(seed), Results()
    with Connection(settings_of(port, **more)) as connection:
        driver = Driver(connection.session)
        for _ in range(2):
            driver.program(0, codes(rng, 36, 24))
            driver.program_ahead(1, codes(rng, 36, 24))
            for tile in range(2):
                vectors, maps = codes(rng, 100, 36).clip(0), codes(rng, 4, 400)
                vectors[:50] //= 8
                maps[:2] //= 8
                rows, positions = (Loop(4, 100), Loop(3, 10), Loop(3, 1)), (Loop(8, 10), Loop(8, 1))
                results += [driver.multiply(tile, vectors), driver.multiply(tile, vectors)]
                results.append(driver.multiply_patches(tile, Overlapping(maps, rows, positions), TilePart(0, 36, 3, 9)))
            results.append(driver.readback(1))
    return results


def codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-127, 128, shape, np.int8)


def recorded(trace: Path, board: BoardSettings, seed: int = 0) -> Results:
    """The work on a virtual board behind a real terminal."""
    port = PtyPort(trace.with_name("port"))  # a name that no other process gets while the board is unplugged
    with serving(board, port):
        return work(port.address, seed, trace=str(trace))


def same(one: Results, other: Results) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def written(trace: Path, *entries: dict[str, Any]) -> Trace:
    """A trace of these entries."""
    header = {"format": "pimcal serial trace", "version": 1}
    trace.write_text("".join(json.dumps(line) + "\n" for line in (header, *entries)))
    return Trace(trace)


def on_line(kind: str, *frames: Frame, time_s: float = 0.0) -> dict[str, Any]:
    data = b"".join(map(encode_frame, frames))
    return {"time_s": time_s, kind: base64.b64encode(data).decode()}


# --- replay


@pytest.mark.parametrize("seed", range(3))
def test_a_session_over_a_bad_line_is_replayed_bit_by_bit(tmp_path: Path, seed: int) -> None:
    trace = tmp_path / "session.trace"
    results = recorded(
        trace, board_of(array=NOISY, output_bits=8, faults={**FAULTS, "byte_errors": 1e-4, "seed": seed}), seed
    )
    summary = trace_report(Trace(trace))["summary"]
    assert min(summary["received_broken"], summary["repeats"]) > 0
    assert same(work(f"replay:{trace}", seed), results)
    assert same(work(f"replay:{trace}", seed), results)


@pytest.mark.parametrize(
    "faults",
    [
        {"reset_at": [30, 120]},
        {"unplug_at": [60], "unplugged_s": 0.1},
        {**FAULTS, "reset_at": [50, 51, 130], "unplug_at": [90], "unplugged_s": 0.1, "stall_at": [20], "stall_s": 0.3},
    ],
    ids=["resets", "unplugging", "everything"],
)
def test_restarts_of_the_board_are_replayed_where_they_were(tmp_path: Path, faults: dict[str, Any]) -> None:
    trace = tmp_path / "session.trace"
    results = recorded(trace, board_of(array=NOISY, output_bits=8, faults=faults))
    assert trace_report(Trace(trace))["summary"]["restarts"] >= 1
    assert same(work(f"replay:{trace}"), results)


def test_a_noisy_board_gives_other_results_without_its_recording(tmp_path: Path) -> None:
    board = board_of(array=NOISY)
    assert not same(recorded(tmp_path / "a", board), recorded(tmp_path / "b", board_of(array={**NOISY, "seed": 2})))


def test_a_reset_is_replayed(tmp_path: Path) -> None:
    with Connection(settings_of("sim:", trace=str(tmp_path / "t"))) as connection:
        boot_id = restart(connection.session)
    with Connection(settings_of(f"replay:{tmp_path / 't'}")) as connection:
        assert connection.session.info.boot_id != boot_id
        assert restart(connection.session) == boot_id


def test_what_a_board_says_of_itself_is_replayed_and_said_again(tmp_path: Path) -> None:
    with Connection(settings_of("sim:", trace=str(tmp_path / "t"), simulator={"supply_mv": 3210})) as connection:
        told = board_report(connection.session)
    with Connection(settings_of(f"replay:{tmp_path / 't'}")) as connection:
        again = board_report(connection.session)
        connection.session.hello()
        assert connection.session.request(Request(MessageType.READ)) == connection.session.request(
            Request(MessageType.READ)
        )
    assert again == {**told, "window": 1}  # a recording answers one request at a time


@pytest.mark.parametrize("wanted", [None, "PIM-0815"])
def test_a_recording_of_another_board_is_refused(tmp_path: Path, wanted: str | None) -> None:
    work("sim:", trace=str(tmp_path / "t"), simulator={**SMALL, "serial_number": "PIM-0815"})
    assert same(work(f"replay:{tmp_path / 't'}", serial_number=wanted), work("sim:", simulator=SMALL))
    with pytest.raises(PimcalError, match="has the serial number PIM-0815, the profile wants PIM-4711"):
        work(f"replay:{tmp_path / 't'}", serial_number="PIM-4711")


def test_a_request_that_was_not_recorded_is_named(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    work("sim:", trace=str(trace), simulator=SMALL)
    with pytest.raises(DataError, match=r"t has no answer to request \d+: PROGRAM on tile 0, \d+ bytes; replay"):
        work(f"replay:{trace}", seed=1)


def test_a_product_is_not_given_more_often_than_it_was_recorded(tmp_path: Path) -> None:
    settings = settings_of("sim:", trace=str(tmp_path / "t"), simulator=SMALL)
    weights, inputs = np.eye(4, dtype=np.int8), np.ones((2, 4), np.int8)
    with Connection(settings) as connection:
        driver = Driver(connection.session)
        driver.program(2, weights)
        assert np.array_equal(driver.multiply(2, inputs), inputs)
    with Connection(settings_of(f"replay:{tmp_path / 't'}")) as connection:
        driver = Driver(connection.session)
        driver.program(2, weights)
        assert np.array_equal(driver.multiply(2, inputs), inputs)
        with pytest.raises(DataError, match=r"no further answer to request \d+: MVM on tile 2"):
            driver.multiply(2, inputs)


def test_a_change_of_the_line_rate_is_left_out_of_a_replay(tmp_path: Path) -> None:
    trace, port = tmp_path / "t", PtyPort(tmp_path / "port")
    faults = {**FAULTS, "lost": 0.0, "truncated": 0.0, "reset_at": [40]}
    with serving(board_of(array=NOISY, faults=faults), port):
        results = work(port.address, trace=str(trace), baud=1_000_000, fast_baud=3_000_000)
    events = {entry.text for entry in Trace(trace).entries() if entry.kind == "event"}
    assert "line rate 3000000" in events
    assert same(work(f"replay:{trace}", baud=1_000_000, fast_baud=3_000_000), results)


def test_a_refusal_is_replayed(tmp_path: Path) -> None:
    recording, replay = settings_of("sim:", trace=str(tmp_path / "t")), settings_of(f"replay:{tmp_path / 't'}")
    for settings in (recording, replay):
        with Connection(settings) as connection, pytest.raises(UsageError, match="NOT_PROGRAMMED"):
            Driver(connection.session).adopt(1)


PROFILE = """
schema: pimcal/1
backend: serial
device:
  port: "sim:"
  simulator:
    {tiles: 4, rows: 40, cols: 16, output_bits: 8, array: {noise: mul, eta0: 0.2, gain_spread: 0.1, seed: 3}}
"""


def calibrated(folder: Path, **device: str) -> tuple[pimcal.Record, torch.Tensor]:
    """A record of a small network's calibration, and what the network says with it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    images = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    (folder / "p.yaml").write_text(PROFILE)
    profile = load_profile(str(folder / "p.yaml"), {f"device.{key}": value for key, value in device.items()})
    with pimcal.open_device(profile) as device_:
        net = pimcal.deploy(model.eval(), device_)
        record = pimcal.calibrate(net, images.split(8))
        net.apply(record)
        return record, net(images)


def test_a_calibration_is_replayed_with_the_same_record(tmp_path: Path) -> None:
    trace = tmp_path / "calibration.trace"
    record, outputs = calibrated(tmp_path, trace=str(trace))
    again, same_outputs = calibrated(tmp_path, port=f"replay:{trace}")
    assert torch.equal(outputs, same_outputs)
    assert record.corrections.keys() == again.corrections.keys() == {"1"}
    for name, values in record.corrections["1"].items():
        assert torch.equal(values, again.corrections["1"][name])
    assert (again.made_with.device, again.made_with.mvms) == (record.made_with.device, record.made_with.mvms)
    untraced, _ = calibrated(tmp_path)
    assert untraced.id == again.id == record.id  # so that each can be applied in place of the others


# --- the file


def test_bytes_events_and_failures_are_written_at_once(tmp_path: Path) -> None:
    class Port:
        def exchange(self, outgoing: bytes | bytearray, timeout_s: float) -> tuple[int, bytes]:
            if not outgoing:
                raise LinkError("unplugged")
            return 2, b"back"

        def set_baud(self, baud: int) -> None: ...

        def close(self) -> None: ...

    trace, clock = tmp_path / "t", itertools.count(10.0)
    writer = TraceWriter(trace, "/dev/board", 9600, clock=lambda: next(clock))
    port = traced(Port, writer)()
    assert isinstance(port, TracedTransport)
    assert port.exchange(b"out", 0.0) == (2, b"back")
    port.set_baud(115200)
    with pytest.raises(LinkError):
        port.exchange(b"", 0.0)
    expected = [
        Entry(1.0, "event", text="opened"),
        Entry(2.0, "sent", b"ou"),
        Entry(3.0, "received", b"back"),
        Entry(4.0, "event", text="line rate 115200"),
        Entry(5.0, "event", text="failed: unplugged"),
    ]
    assert list(Trace(trace).entries()) == expected  # while it is still being written
    header = Trace(trace).header
    assert (header["port"], header["baud"], header["pimcal"]) == ("/dev/board", 9600, pimcal.__version__)
    port.close()
    writer.close()
    assert [entry.text for entry in Trace(trace).entries()][-1] == "closed"


def test_nothing_is_replaced_by_a_trace(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("mine")
    with pytest.raises(UsageError, match=r"t exists, and a trace replaces nothing; name another file"):
        work("sim:", trace=str(tmp_path / "t"))
    assert (tmp_path / "t").read_text() == "mine"


def test_a_trace_without_a_byte_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(PimcalError, match="there is no port"):
        work("/dev/no-such-port", trace=str(tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_a_trace_that_cannot_be_written_is_told_before_the_board_is_used(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot make the trace .*no/t: No such file"):
        work("sim:", trace=str(tmp_path / "no" / "t"))


def test_a_recording_is_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE)
    with pytest.raises(ConfigError, match="trace has no effect with port replay:a; that file is the trace"):
        load_profile(str(tmp_path / "p.yaml"), {"device.port": "replay:a", "device.trace": "b"})


def test_a_trace_that_was_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    work("sim:", trace=str(tmp_path / "t"), simulator=SMALL)
    content = (tmp_path / "t").read_bytes()
    whole = list(Trace(tmp_path / "t").entries())
    header = content.index(b"\n") + 1
    for size in np.linspace(header, len(content), 20).astype(int):
        (tmp_path / "cut").write_bytes(content[:size])
        assert list(Trace(tmp_path / "cut").entries()) == whole[: content[:size].count(b"\n") - 1]
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="answer to request"):
        work(f"replay:{tmp_path / 'cut'}")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no trace"),
        (b"\x00\xff" * 100, "is no trace"),
        (b"{}\n", "is no trace"),
        (b"[1]\n", "is no trace"),
        (b"schema: pimcal/1\n", "is no trace"),
        (b'{"format": "pimcal serial trace", "version": 2}\n', "is a trace of version 2, this pimcal reads version 1"),
        (b'{"format": "pimcal serial trace", "version": 1}\n', "no board answers HELLO"),
        (b'{"format": "pimcal serial trace", "version": 1}\nnonsense\n', "is damaged in line 2"),
        (b'{"format": "pimcal serial trace", "version": 1}\n{"time_s": 0, "sent": "?"}\n', "is damaged in line 2"),
        (b'{"format": "pimcal serial trace", "version": 1}\n{"sent": ""}\n', "is damaged in line 2"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(DataError, match=told):
        work(f"replay:{tmp_path / 't'}")


@pytest.mark.parametrize("name", ["no-such-file", "."])
def test_a_trace_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        work(f"replay:{tmp_path / name}")


def test_ctrl_c_leaves_a_trace_that_ends_with_the_session(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    command = ["-m", "pimcal", "board", "bench", "--port", "sim:", "--seconds", "100", "--trace", str(trace)]
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE) as running:
        while not trace.exists() or trace.stat().st_size < 10_000:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
    assert list(Trace(trace).entries())[-1].text == "closed"
    assert trace_report(Trace(trace), limit=0)["summary"]["frames"]["ECHO"]["received"] > 0


# --- what it means


@given(st.lists(st.binary(max_size=12)), st.randoms(use_true_random=False))
def test_frames_are_found_however_their_bytes_were_cut(payloads: list[bytes], rng: Any) -> None:
    frames = [Frame(MessageType.ECHO, number, payload=payload) for number, payload in enumerate(payloads, 1)]
    data = b"\0" + b"".join(map(encode_frame, frames))
    cuts = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(5))})
    entries = [Entry(0.0, SENT, data[first:last]) for first, last in itertools.pairwise(cuts)]
    noise = [Entry(0.0, RECEIVED, b"\x07garbage\0") for _ in entries]
    mixed = [entry for pair in zip(entries, noise, strict=True) for entry in pair]
    assert [seen.frame for seen in sightings(mixed) if seen.kind == SENT] == frames
    assert all(seen.frame is None for seen in sightings(mixed) if seen.kind == RECEIVED)


def test_a_request_counts_once_however_often_it_was_sent(tmp_path: Path) -> None:
    hello = Frame(MessageType.HELLO, 1)
    board = Frame(MessageType.HELLO | ANSWER, 1, payload=BoardInfo(boot_id=5).encode())
    sink, answer = Frame(MessageType.SINK, 2, payload=b"x"), Frame(MessageType.SINK | ANSWER, 2, payload=b"\1\0\0\0")
    lines = [on_line("sent", hello), on_line("received", board)]
    lines += [on_line("sent", sink)] * 3 + [on_line("received", answer)] * 2
    recording, repeats = Recording(), 0
    for sighting in sightings(written(tmp_path / "t", *lines).entries()):
        repeats += recording.take(sighting)
    assert (repeats, recording.repeats) == (2, 2)
    assert [(one.request, one.answer) for one in recording.exchanges] == [(hello, board), (sink, answer)]


def test_answers_that_the_host_did_not_use_are_not_given(tmp_path: Path) -> None:
    asked = [Frame(MessageType.SINK, number, payload=bytes(number)) for number in (1, 2, 3)]
    used, early, late = (Frame(MessageType.SINK | ANSWER, frame.sequence, payload=b"\1\0\0\0") for frame in asked)
    trace = written(
        tmp_path / "t",
        on_line("sent", *asked),
        on_line("received", used, early),
        {"time_s": 0.0, "note": "answers used", "values": [1]},
        on_line("received", late),
    )
    recording = Recording()
    for sighting in sightings(trace.entries()):
        recording.take(sighting)
    assert [exchange.answer for exchange in recording.exchanges] == [used, None, None]


def test_the_report_tells_frames_from_what_is_none(tmp_path: Path) -> None:
    boot = Frame(MessageType.BOOT | ANSWER, 0, payload=Boot(9).encode())
    log = Frame(MessageType.LOG | ANSWER, 0, payload=Log(2, "too hot").encode())
    fault = Frame(MessageType.READ | ANSWER, 3, status=Status.FAULT, payload=b"fuse")
    other = Frame(MessageType.HELLO | ANSWER, 4, version=2)
    strange = Frame(0x55, 5, tile=7, payload=b"??")
    short = Frame(MessageType.MVM, 6, tile=1, payload=b"\1")
    trace = written(
        tmp_path / "t",
        {"time_s": 0.0, "event": "opened"},
        on_line("received", boot, log, time_s=0.5),
        on_line("received", fault, other, time_s=1.0),
        on_line("sent", strange, short, time_s=1.5),
        {"time_s": 2.0, "received": base64.b64encode(b"\x05nonsense\0cut").decode()},
        {"time_s": 2.5, "event": "failed: unplugged"},
    )
    found = trace_report(trace)
    rows = [(row["time_s"], row["direction"], row["type"], row["tile"], row["status"]) for row in found["rows"]]
    assert rows == [
        (0.0, None, "EVENT", None, None),
        (0.5, "received", "BOOT", None, "OK"),
        (0.5, "received", "LOG", None, "OK"),
        (1.0, "received", "READ", None, "FAULT"),
        (1.0, "received", "HELLO", None, "OK"),
        (1.5, "sent", "0x55", 7, None),
        (1.5, "sent", "MVM", 1, None),
        (2.0, "received", "BROKEN", None, None),
        (2.5, None, "EVENT", None, None),
        (2.5, "received", "BROKEN", None, None),
    ]
    meanings = [row["meaning"] for row in found["rows"]]
    assert meanings[:5] == ["opened", "boot id 9", "too hot", "fuse", "version 2 of the protocol"]
    assert meanings[5:] == ["", "makes no sense", "COBS data ends inside a piece", "failed: unplugged", "cut off"]
    assert (found["summary"]["received_broken"], found["summary"]["refused"], found["summary"]["seconds"]) == (
        2,
        1,
        2.5,
    )


def test_the_report_adds_up(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    recorded(trace, board_of(faults={**FAULTS, "seed": 4}))
    found = trace_report(Trace(trace))
    summary, rows = found["summary"], found["rows"]
    for way in ("sent", "received"):
        frames = [row for row in rows if row["direction"] == way and row["type"] != "BROKEN"]
        assert sum(counts[way] for counts in summary["frames"].values()) == len(frames)
        assert summary[f"{way}_bytes"] == sum(len(entry.data) for entry in Trace(trace).entries() if entry.kind == way)
        assert summary[f"{way}_broken"] == sum(row["direction"] == way and row["type"] == "BROKEN" for row in rows)
    assert summary["repeats"] == sum(row["meaning"].endswith("(repeated)") for row in rows) > 0
    requests = sum(row["direction"] == "sent" and row["type"] != "BROKEN" for row in rows)
    assert summary["requests"] + summary["repeats"] == requests
