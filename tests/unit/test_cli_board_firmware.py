"""`pimcal board firmware`: sources to a folder, programs, and a board that runs until a signal ends it."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from pimcal_serial.firmware_build import BUILD, MANIFEST, SOURCES, TARGETS, build, sources, write_sources
from pimcal_serial.simulator.ports import TcpPort

PATIENCE_S = 60.0

needs_compiler = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="needs cc and make")
needs_qemu = pytest.mark.skipif(
    not (shutil.which("qemu-system-arm") and shutil.which("arm-none-eabi-gcc") and shutil.which("make")),
    reason="needs qemu-system-arm, arm-none-eabi-gcc and make",
)
ON_ANY = pytest.mark.parametrize(
    "target", [pytest.param(name, marks=needs_qemu if TARGETS[name].machine else needs_compiler) for name in TARGETS]
)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Locks, and what is left behind in the folder of temporary files, are this test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@contextmanager
def started(*arguments):
    command = [sys.executable, "-m", "pimcal", "board", "firmware", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def children(process):
    """Process ids of a process's children and theirs."""
    found = Path(f"/proc/{process}/task/{process}/children")
    own = found.read_text().split() if found.exists() else []
    return [*own, *(deeper for child in own for deeper in children(child))]


def command_lines(processes):
    """What still runs of these, as the shell would show it."""
    paths = [Path(f"/proc/{number}/cmdline") for number in processes]
    return [path.read_bytes().replace(b"\0", b" ").decode() for path in paths if path.exists() and path.read_bytes()]


# --- sources


def test_the_sources_are_written_with_check_sums(pimcal_run):
    assert pimcal_run("board", "firmware", "--out", "fw").code == 0
    written = contents("fw")
    listed = dict(reversed(line.split("  ")) for line in written.pop(MANIFEST).decode().splitlines())
    there = [path for path in SOURCES.iterdir() if path.is_file()]
    assert written == {path.name: path.read_bytes() for path in there}
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}


@needs_compiler
def test_the_written_sources_build_by_themselves(pimcal_run):
    pimcal_run("board", "firmware", "--out", "fw with a space")
    subprocess.run(["make", "-C", "fw with a space", "native"], check=True, capture_output=True)
    assert os.access("fw with a space/build/pimboard", os.X_OK)
    assert pimcal_run("board", "firmware", "--out", "fw with a space").code == 0  # what it built is no obstacle


def test_sources_of_an_earlier_version_are_replaced(pimcal_run):
    pimcal_run("board", "firmware", "--out", "fw")
    folder, old = Path("fw"), b"int old;\n"
    (folder / "pim_old.c").write_bytes(old)
    (folder / "uart.h").write_bytes(old)
    digest = hashlib.sha256(old).hexdigest()
    kept = [line for line in (folder / MANIFEST).read_text().splitlines() if not line.endswith("uart.h")]
    (folder / MANIFEST).write_text("\n".join([*kept, f"{digest}  uart.h", f"{digest}  pim_old.c"]))
    assert pimcal_run("board", "firmware", "--out", "fw").code == 0
    assert contents("fw").keys() - {MANIFEST} == sources().keys()
    assert (folder / "uart.h").read_bytes() == sources()["uart.h"]


@pytest.mark.parametrize("name", ["notes.txt", "pim_config.h", ".hidden"])
def test_a_folder_with_anything_else_in_it_is_refused(pimcal_run, name):
    if name in sources():
        pimcal_run("board", "firmware", "--out", "fw")
    Path("fw").mkdir(exist_ok=True)
    Path("fw", name).write_text("mine")
    before = contents("fw")
    done = pimcal_run("board", "firmware", "--out", "fw")
    assert done.code == 2
    assert f"fw holds what is not as pimcal wrote it ({name}); name an empty folder" in done.err
    assert contents("fw") == before


def test_a_file_is_no_folder(pimcal_run):
    Path("fw").write_text("mine")
    done = pimcal_run("board", "firmware", "--out", "fw")
    assert (done.code, Path("fw").read_text()) == (2, "mine")
    assert "fw is no folder" in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "say where the firmware goes"),
        (("--target", "native"), "say where the firmware goes"),
        (("--run",), "one port; give --pty PATH or --tcp PORT"),
        (("--run", "--pty", "p", "--tcp", "0"), "one of them"),
        (("--out", "fw", "--tcp", "0"), "add --run"),
        (("--out", "fw", "--define", "PIM_TILES=3"), "add --target"),
        (("--out", "fw", "--target", "avr"), "'avr' is not one of"),
        (("--run", "--tcp", "0", "--define", "PIM_TILE=3"), "did you mean 'PIM_TILES'?"),
        (("--run", "--tcp", "0", "--define", "PIM_TILES"), "must be NAME=VALUE"),
        (("--run", "--tcp", "0", "--define", "NDEBUG=1"), "there are: PIM_MODEL"),
        (("--run", "--tcp", "0", "--define", "PIM_TILES=many"), "must be a whole number"),
        (("--run", "--tcp", "0", "--define", "PIM_SERIAL=$(id)"), "only letters, digits"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(pimcal_run, arguments, told):
    done = pimcal_run("board", "firmware", *arguments)
    assert done.code == 2
    assert told in done.err
    assert not Path("fw").exists()


# --- building


@ON_ANY
def test_a_target_is_built_where_the_sources_are(pimcal_run, target):
    done = pimcal_run("board", "firmware", "--out", "fw", "--target", target)
    assert done.code == 0, done.err
    assert [path.name for path in Path("fw", BUILD).iterdir()] == [TARGETS[target].program]


@needs_compiler
def test_what_the_compiler_says_is_shown(pimcal_run):
    done = pimcal_run("board", "firmware", "--out", "fw", "--target", "native", "--define", "PIM_OUTPUT_BITS=20")
    assert done.code == 78
    assert "the firmware for native cannot be built:" in done.err
    assert "the converter fits int16" in done.err


@pytest.mark.parametrize(
    ("target", "programs", "missing", "packages"),
    [
        ("native", {}, "make, a C compiler", "make gcc libc6-dev"),
        ("native", {"make": ""}, "a C compiler", "gcc libc6-dev"),
        (
            "mps2-an385",
            {"make": ""},
            "arm-none-eabi-gcc, newlib, qemu-system-arm",
            "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm",
        ),
        (
            "lm3s6965evb",
            {"make": "", "qemu-system-arm": "", "arm-none-eabi-gcc": "echo nano.specs"},
            "newlib",
            "libnewlib-arm-none-eabi",
        ),
    ],
)
def test_missing_tools_are_named_with_their_packages(
    pimcal_run, monkeypatch, tmp_path, target, programs, missing, packages
):
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = pimcal_run("board", "firmware", "--run", "--tcp", "0", "--target", target)
    assert done.code == 78
    assert done.err.rstrip("\n") == (
        f"error: the firmware for {target} needs {missing}; "
        f"on Debian: sudo apt-get install --no-install-recommends {packages}"
    )


# --- running


@ON_ANY
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["int", "term", "hup"]
)
def test_a_signal_ends_the_board_and_all_that_belongs_to_it(pimcal_run, tmp_path, target, number, code):
    place = tmp_path / "board"
    where = ("--tcp", "0") if number == signal.SIGHUP else ("--pty", place)
    with started("--target", target, "--run", *where) as process:
        address = process.stdout.readline().strip()
        assert address.startswith("socket://127.0.0.1:") or address == str(place)
        assert pimcal_run("board", "info", "--port", address, "--json").json["serial_number"] == "REF0001"
        board = children(process.pid)
        assert len(command_lines(board)) == 1
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == code
        assert ("error: interrupted" in process.stderr.read()) == (number == signal.SIGINT)
    assert command_lines(board) == []
    assert not place.is_symlink()
    assert list((tmp_path / "temporary").iterdir()) == []


@needs_compiler
def test_the_address_can_be_used_wherever_the_path_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with started("--run", "--pty", "board") as process:
        assert process.stdout.readline().strip() == str(tmp_path / "board")


@needs_compiler
def test_definitions_change_the_board(pimcal_run):
    defines = ("--define", "PIM_SERIAL=LAB 1", "--define", "PIM_OUTPUT_BITS=8", "--define", "PIM_TILES=3")
    with started("--run", "--tcp", "0", *defines) as process:
        address = process.stdout.readline().strip()
        found = pimcal_run("board", "info", "--port", address, "--json").json
    assert (found["serial_number"], found["output_bits"], found["tiles"]) == ("LAB 1", 8, 3)


@needs_compiler
def test_a_signal_while_it_is_built_ends_the_compiler_and_leaves_nothing(tmp_path):
    with started("--run", "--tcp", "0") as process:
        deadline_s = time.monotonic() + PATIENCE_S
        while not any("make" in line for line in command_lines(children(process.pid))):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 143
        assert process.stdout.read() == ""
    assert list((tmp_path / "temporary").glob("pimcal-*")) == []


@needs_compiler
def test_an_interruption_when_the_compiler_has_just_ended_is_only_that(tmp_path, monkeypatch):
    communicate = subprocess.Popen.communicate

    def interrupted_after(process):
        communicate(process)
        raise KeyboardInterrupt

    write_sources(tmp_path / "sources")
    monkeypatch.setattr("subprocess.Popen.communicate", interrupted_after)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "sources", TARGETS["native"])


@needs_compiler
def test_a_taken_port_is_told(pimcal_run):
    taken = TcpPort(0)
    taken.plug()
    done = pimcal_run("board", "firmware", "--run", "--tcp", str(taken.port))
    taken.unplug()
    assert done.code == 75
    assert f"cannot listen on port {taken.port}" in done.err


@ON_ANY
def test_a_file_at_the_terminals_path_is_kept(pimcal_run, target):
    Path("board").write_text("mine")
    done = pimcal_run("board", "firmware", "--target", target, "--run", "--pty", "board")
    assert done.code == 2
    assert "board exists; give a path where the board's terminal can appear" in done.err
    assert Path("board").read_text() == "mine"


@needs_qemu
def test_a_board_that_ends_by_itself_is_told(pimcal_run):
    with started("--target", "mps2-an385", "--run", "--tcp", "0") as process:
        assert pimcal_run("board", "info", "--port", process.stdout.readline().strip()).code == 0
        (board,) = children(process.pid)
        os.kill(int(board), signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 69
        told = process.stderr.read()
    assert "error: the firmware has ended by itself (code 0): qemu-system-arm: terminating on signal 15" in told
