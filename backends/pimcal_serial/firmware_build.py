"""The reference firmware's sources, and what `make` builds from them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pimcal.errors import ConfigError, StorageError, UsageError
from pimcal.files import replace_together
from pimcal.suggest import did_you_mean

SOURCES = Path(__file__).parent / "firmware"
BUILD = "build"
MANIFEST = "SHA256SUMS"
QEMU = "qemu-system-arm"

_SUFFIXES = (".c", ".h", ".ld")
_OPTION = re.compile(r"^#ifndef (PIM_\w+).*\n#define \1 ", re.MULTILINE)
_TEXTS = ("PIM_FIRMWARE", "PIM_MODEL", "PIM_SERIAL")
_ARM_COMPILER = "arm-none-eabi-gcc"
_PACKAGES = {
    "make": "make",
    "a C compiler": "gcc libc6-dev",
    _ARM_COMPILER: "gcc-arm-none-eabi",
    "newlib": "libnewlib-arm-none-eabi",
    QEMU: QEMU,
}


@dataclass(frozen=True, slots=True)
class Target:
    """What the firmware is built for. `machine`: QEMU's name of the microcontroller board, None for this computer."""

    name: str
    program: str
    machine: str | None = None


TARGETS = {
    target.name: target
    for target in (
        Target("native", "pimboard"),
        Target("mps2-an385", "pimboard-mps2.elf", "mps2-an385"),
        Target("lm3s6965evb", "pimboard-lm3s6965.elf", "lm3s6965evb"),
    )
}


def sources() -> dict[str, bytes]:
    """The firmware's files by name."""
    return {
        path.name: path.read_bytes()
        for path in sorted(SOURCES.iterdir())
        if path.suffix in _SUFFIXES or path.name == "Makefile"
    }


def write_sources(folder: Path) -> int:
    """Write the sources and their check sums, all or none; returns how many files there are.

    Raises UsageError where the folder holds anything that this function did not write, or that was changed since;
    StorageError.
    """
    files = sources()
    stale = _written_before(folder) - files.keys()
    sums = "".join(f"{sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    replace_together(folder, files | {MANIFEST: sums.encode()})
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    return len(files)


def _written_before(folder: Path) -> set[str]:
    """Sources that an earlier `write_sources` has left there."""
    try:
        there = {path.name: path for path in folder.iterdir()} if folder.exists() else {}
        sums = dict(_sums(there.pop(MANIFEST))) if MANIFEST in there else {}
        there.pop(BUILD, None)
        foreign = [name for name, path in sorted(there.items()) if sums.get(name) != _digest(path)]
    except NotADirectoryError as error:
        raise UsageError(f"{folder} is no folder; name an empty or a new one") from error
    except OSError as error:
        raise StorageError(f"cannot read {folder}: {error.strerror}; name another folder") from error
    if foreign:
        named = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise UsageError(
            f"{folder} holds what is not as pimcal wrote it ({named}); name an empty folder, "
            "or build your own changes there with make"
        )
    return set(there)


def _sums(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        yield name, digest


def _digest(path: Path) -> str | None:
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def compiler_option(define: str) -> str:
    """`NAME=VALUE`, one of those in pim_config.h, as an option for the compiler. Raises UsageError."""
    name, equals, value = define.partition("=")
    known = _OPTION.findall((SOURCES / "pim_config.h").read_text())
    if not equals or name not in known:
        hint = did_you_mean(name, known) or f"; there are: {', '.join(known)}"
        raise UsageError(f"--define {define}: must be NAME=VALUE with a name from pim_config.h{hint}")
    if name in _TEXTS:
        if not re.fullmatch(r"[\w .:+-]*", value, re.ASCII):
            raise UsageError(f"--define {define}: only letters, digits, spaces and _ . : + - are possible")
        return f"'-D{name}=\"{value}\"'"
    if not re.fullmatch(r"[0-9]+", value):
        raise UsageError(f"--define {define}: must be a whole number")
    return f"-D{name}={int(value)}"


def check_tools(target: Target, *, to_run: bool) -> None:
    """Raise ConfigError, naming Debian's packages, where building the target (or running it) lacks a program."""
    missing = list(_missing_tools(target, to_run))
    if missing:
        packages = " ".join(_PACKAGES[tool] for tool in missing)
        raise ConfigError(
            f"the firmware for {target.name} needs {', '.join(missing)}; "
            f"on Debian: sudo apt-get install --no-install-recommends {packages}"
        )


def _missing_tools(target: Target, to_run: bool) -> Iterator[str]:
    if not shutil.which("make"):
        yield "make"
    if target.machine is None:
        if not shutil.which(os.environ.get("CC", "cc").split(maxsplit=1)[0]):
            yield "a C compiler"
        return
    if not shutil.which(_ARM_COMPILER):
        yield _ARM_COMPILER
        yield "newlib"
    elif not _has_newlib():
        yield "newlib"
    if to_run and not shutil.which(QEMU):
        yield QEMU


def _has_newlib() -> bool:
    """The compiler tells a file's path where it has it, else its bare name."""
    asked = [_ARM_COMPILER, "-print-file-name=nano.specs"]
    return Path(subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()).is_absolute()


def build(folder: Path, target: Target, options: Iterable[str] = ()) -> Path:
    """Run make in a folder with the sources; returns the program. Raises ConfigError with what make has printed."""
    goal = f"{BUILD}/{target.program}"
    # All is built anew: make does not know that the options are other ones than before.
    command = ["make", "--always-make", f"--directory={folder}", f"BUILD={BUILD}", f"DEFINES={' '.join(options)}", goal]
    code, said = _finished(command)
    if code:
        raise ConfigError(f"the firmware for {target.name} cannot be built:\n{said.rstrip()}")
    return folder / goal


def _finished(command: list[str]) -> tuple[int, str]:
    """A command's exit code and output. All its processes end with this one."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            with suppress(ProcessLookupError):  # make may be over by now
                os.killpg(process.pid, signal.SIGTERM)  # compilers, too: they would go on writing
            raise
    return process.returncode, said
