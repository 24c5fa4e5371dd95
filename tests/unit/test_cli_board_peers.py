"""`pimcal board` and the driver against pimsim, the firmware as a process, and the firmware on an emulated Cortex-M."""

import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from pimcal_serial.connection import Connection
from pimcal_serial.driver import Driver
from pimcal_serial.firmware_build import TARGETS, build, compiler_option, write_sources
from pimcal_serial.inputs import InputFormat, OutputFormat
from pimcal_serial.products import input_format, output_format
from pimcal_serial.settings import SerialSettings
from pimcal_serial.simulator.ports import PtyPort, TcpPort
from pimcal_serial.simulator.serve import serving
from pimcal_serial.simulator.settings import BoardSettings

NEEDED = {"pimsim": (), "native": ("cc", "make"), "qemu": ("arm-none-eabi-gcc", "make", "qemu-system-arm")}
MACHINES = {"native": "native", "qemu": "mps2-an385"}
RUN = """
import sys
from pathlib import Path
from pimcal_serial.firmware_build import TARGETS
from pimcal_serial.firmware_run import run
name, program, path, port = sys.argv[1:]
tell = lambda address: print(address, flush=True)
run(TARGETS[name], Path(program), Path(path) if path else None, int(port) if port else None, tell)
"""


def need(peer):
    missing = [tool for tool in NEEDED[peer] if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The firmware for a peer, built once with the same options."""
    built = {}

    def get(peer, *defines):
        need(peer)
        key = peer, *defines
        if key not in built:
            folder = tmp_path_factory.mktemp(peer)
            write_sources(folder)
            built[key] = build(folder, TARGETS[MACHINES[peer]], map(compiler_option, defines))
        return built[key]

    return get


@contextmanager
def firmware_at(program, peer, path="", port=""):
    """The address of a running board."""
    command = [sys.executable, "-c", RUN, MACHINES[peer], str(program), str(path), port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running.stdout.readline().strip()
        finally:
            running.terminate()


@contextmanager
def simulated(place, **settings):
    with serving(BoardSettings(tiles=6, **settings), place):
        yield place.address


@pytest.fixture(scope="module", params=["pimsim-pty", "pimsim-tcp", "native-pty", "native-tcp", "qemu-pty", "qemu-tcp"])
def port(request, programs, tmp_path_factory):
    """A board's address; it runs on while the tests of this file use it."""
    peer, _, where = request.param.partition("-")
    path = tmp_path_factory.mktemp("port") / "board"
    if peer == "pimsim":
        opened = simulated(PtyPort(path) if where == "pty" else TcpPort(0))
    else:
        place = {"path": path} if where == "pty" else {"port": "0"}
        opened = firmware_at(programs(peer), peer, **place)
    with opened as address:
        yield address


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def driver(port):
    with Connection(SerialSettings(port=port)) as connection:
        yield Driver(connection.session)


# --- the commands


def test_info_tells_what_the_board_is(pimcal_run, port):
    found = pimcal_run("board", "info", "--port", port, "--json").json
    assert (found["rows"], found["cols"], found["weight_bits"], found["input_bits"]) == (256, 256, 8, 8)
    assert (found["tiles_tested"], found["tiles_failed"]) == (found["tiles"], [])
    assert {"int4_inputs", "zero_skipping", "input_buffer", "trims"} <= set(found["capabilities"])


@pytest.mark.parametrize("size", [0, 1, 254, 1500])
def test_echo_comes_back_as_it_was_sent(pimcal_run, port, size):
    found = pimcal_run("board", "echo", "--port", port, "--count", "12", "--size", str(size), "--json").json
    assert (found["frames"], found["bytes"]) == (12, 12 * size)


def test_bench_measures_both_ways(pimcal_run, port):
    found = pimcal_run("board", "bench", "--port", port, "--seconds", "0.1", "--json").json
    assert found["round_trips"] >= 1
    assert min(found["round_trip_median_ms"], found["to_board_bytes_per_s"], found["both_ways_bytes_per_s"]) > 0


def test_weights_and_products_go_through_files(pimcal_run, port):
    rng = np.random.default_rng(0)
    weights, inputs = rng.integers(-127, 128, (200, 33)), rng.integers(-127, 128, (40, 200))
    np.save("w.npy", weights)
    np.save("x.npy", inputs)
    where = ("--port", port, "--tile", "3")
    assert "200 x 33 weights, as written" in pimcal_run("board", "program", *where, "--weights", "w.npy").err
    assert pimcal_run("board", "readback", *where, "--out", "r.npy").code == 0
    assert pimcal_run("board", "mvm", *where, "--inputs", "x.npy", "--out", "y.npy").code == 0
    np.testing.assert_array_equal(np.load("r.npy"), weights)
    np.testing.assert_array_equal(np.load("y.npy"), inputs @ weights)


def test_reset_empties_the_tiles_and_changes_the_boot_id(pimcal_run, port):
    np.save("w.npy", np.ones((4, 4), np.int8))
    before = pimcal_run("board", "info", "--port", port, "--json").json["boot_id"]
    pimcal_run("board", "program", "--port", port, "--weights", "w.npy")
    assert "has restarted (boot id" in pimcal_run("board", "reset", "--port", port).err
    assert "the tile holds no weights" in pimcal_run("board", "readback", "--port", port, "--out", "r.npy").err
    assert pimcal_run("board", "info", "--port", port, "--json").json["boot_id"] != before


def test_a_second_host_is_turned_away_and_the_first_goes_on(pimcal_run, port, driver):
    done = pimcal_run("board", "info", "--port", port)
    assert done.code == 75
    driver.program(0, np.eye(4, dtype=np.int8))
    assert driver.multiply(0, np.arange(8, dtype=np.int8).reshape(2, 4)).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


# --- the driver


def dense(rng, shape):
    return rng.integers(1, 128, shape) * rng.choice([-1, 1], shape)


def sparse(rng, shape):
    return dense(rng, shape) * (rng.random(shape) < 0.1)


def narrow(rng, shape):
    return rng.integers(1, 8, shape) * rng.choice([-1, 1], shape)


@pytest.mark.parametrize(
    ("inputs", "form"),
    [(dense, InputFormat.INT8), (sparse, InputFormat.ZERO_SKIPPING), (narrow, InputFormat.INT4)],
    ids=["dense", "sparse", "narrow"],
)
@pytest.mark.parametrize(
    ("largest", "output"), [(127, OutputFormat.INT32), (1, OutputFormat.INT16)], ids=["wide_sums", "small_sums"]
)
def test_products_are_exact_in_every_format(driver, inputs, form, largest, output):
    rng, board = np.random.default_rng(form), driver.session.info
    for tile, (rows, cols) in enumerate([(3, 1), (60, 256), (256, 40)]):
        weights = rng.integers(-largest, largest + 1, (rows, cols)).astype(np.int8)
        vectors = inputs(rng, (30, rows)).astype(np.int8)
        driver.program(tile, weights)
        np.testing.assert_array_equal(driver.multiply(tile, vectors), vectors.astype(int) @ weights.astype(int))
        np.testing.assert_array_equal(driver.readback(tile), weights)
    assert input_format(board, vectors) == form
    assert output_format(board, int(np.abs(weights.astype(int)).sum(0).max()) * 127) == output


def test_a_tile_that_another_program_has_filled_is_adopted(port, driver):
    weights = np.random.default_rng(1).integers(-127, 128, (50, 20)).astype(np.int8)
    driver.program(5, weights)
    other = Driver(driver.session)
    other.adopt(5)
    assert other.multiply(5, weights.T).tolist() == (weights.T.astype(int) @ weights).tolist()


@pytest.mark.parametrize("peer", ["pimsim", "native", "qemu"])
@pytest.mark.parametrize("bits", [5, 8])
def test_a_converters_codes_travel_packed_and_are_as_near_as_it_allows(programs, peer, bits):
    if peer == "pimsim":
        opened = simulated(TcpPort(0), output_bits=bits)
    else:
        opened = firmware_at(programs(peer, f"PIM_OUTPUT_BITS={bits}"), peer, port="0")
    rng = np.random.default_rng(2)
    weights, inputs = (rng.integers(-127, 128, shape).astype(np.int8) for shape in ((100, 30), (50, 100)))
    exact = inputs.astype(int) @ weights.astype(int)
    with opened as address, Connection(SerialSettings(port=address)) as connection:
        board, driver = connection.session.info, Driver(connection.session)
        driver.program(0, weights)
        outputs = driver.multiply(0, inputs)
    assert board.output_bits == bits
    assert output_format(board, 10**6) == OutputFormat.PACKED
    step = np.gcd.reduce(outputs, axis=None)
    assert step > 1
    assert np.abs(outputs // step).max() <= 2 ** (bits - 1) - 1
    assert np.abs(outputs - exact).max() <= step / 2
