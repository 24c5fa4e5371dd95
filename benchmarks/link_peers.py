"""Boards that stand in for a real one, each a process of its own behind a pseudo-terminal: `pimsim`, the reference
firmware on this computer, and the same under QEMU. Each function gives the port's path while its block runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pimcal_serial.connection import Connection
from pimcal_serial.settings import SerialSettings

FIRMWARE = Path(__file__).parents[1] / "backends" / "pimcal_serial" / "firmware"
MACHINE = "mps2-an385"
ENDING_S = 10.0

Peer = Callable[..., AbstractContextManager[str]]  # output_bits, 0 for none, and command_ms where it is to be another


@contextmanager
def running(command: list[str], errors: int | None = None) -> Iterator[str]:
    """The first line that a program prints, while it runs."""
    silence, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdin=silence, stdout=pipe, stderr=errors, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline()
        finally:
            process.terminate()
            process.wait(ENDING_S)


@contextmanager
def simulated(simulator: dict[str, Any], baud: int | None = None) -> Iterator[str]:
    """`pimcal board simulate`; `simulator` is the profile's part of that name, `baud` paces the line."""
    profile = {"schema": "pimcal/1", "backend": "serial", "device": {"port": "sim:", "simulator": simulator}}
    with tempfile.TemporaryDirectory() as folder:
        file, port = Path(folder, "profile.yaml"), Path(folder, "port")
        file.write_text(json.dumps(profile))  # JSON is YAML, too
        command = [sys.executable, "-m", "pimcal", "board", "simulate", "--profile", str(file), "--pty", str(port)]
        with running(command + (["--pace", str(baud)] if baud else [])) as ready:
            if not ready:
                raise SystemExit("pimsim did not start; its message is above")
            yield str(port)


def pimsim(output_bits: int, command_ms: int = 100) -> AbstractContextManager[str]:
    return simulated({"output_bits": output_bits, "command_ms": command_ms})


@contextmanager
def native(output_bits: int, command_ms: int = 500) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        port = Path(folder, "port")
        with running([str(built("native", output_bits, command_ms) / "pimboard"), "--pty", str(port)]):
            yield str(port)


@contextmanager
def emulated(output_bits: int, command_ms: int = 2000) -> Iterator[str]:
    image = built("qemu", output_bits, command_ms) / "pimboard-mps2.elf"
    machine = ["qemu-system-arm", "-M", MACHINE, "-kernel", str(image), "-display", "none", "-monitor", "none"]
    with running([*machine, "-serial", "pty"], subprocess.DEVNULL) as redirected:  # it tells there how it was ended
        port = next(word for word in redirected.split() if word.startswith("/dev/"))
        held = os.open(port, os.O_RDWR | os.O_NOCTTY)  # QEMU notices a host only once a second
        try:
            yield port
        finally:
            os.close(held)


PEERS: dict[str, Peer] = {"native firmware": native, f"firmware on {MACHINE}, QEMU": emulated, "pimsim": pimsim}


@cache
def _builds() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@cache
def built(target: str, output_bits: int, command_ms: int) -> Path:
    """The folder with what make has built."""
    folder = Path(_builds().name, f"{target}-{output_bits}-{command_ms}")
    defines = f"DEFINES=-DPIM_OUTPUT_BITS={output_bits} -DPIM_COMMAND_MS={command_ms}"
    subprocess.run(["make", "--silent", "-C", str(FIRMWARE), target, f"BUILD={folder}", defines], check=True)
    return folder


def connected(port: str, baud: int = 115_200) -> Connection:
    return Connection(SerialSettings(port=port, baud=baud))
