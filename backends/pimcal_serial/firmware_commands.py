"""`pimcal board firmware`: the reference firmware's sources, its programs, and a board that runs them."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pimcal.cli.output import note
from pimcal.errors import UsageError


class TargetName(StrEnum):
    """What the firmware is built for."""

    NATIVE = "native"
    MPS2 = "mps2-an385"
    LM3S = "lm3s6965evb"


def firmware(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the sources there; built ones go to DIR/build.")
    ] = None,
    target: Annotated[
        TargetName | None, typer.Option("--target", help="Build it: for this computer, or for a Cortex-M3 board.")
    ] = None,
    define: Annotated[
        list[str] | None,
        typer.Option("--define", metavar="NAME=VALUE", help="Change a value of pim_config.h, e.g. PIM_OUTPUT_BITS=8."),
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Be a board with it, until Ctrl-C; Cortex-M under QEMU.")] = False,
    pty: Annotated[
        Path | None, typer.Option("--pty", metavar="PATH", help="With --run: appear as a terminal at this path.")
    ] = None,
    tcp: Annotated[
        int | None, typer.Option("--tcp", min=0, max=65535, help="With --run: listen at this TCP port instead.")
    ] = None,
) -> None:
    """Write, build or run the reference firmware, a board in portable C; --run prints the port that others use."""
    from pimcal_serial.firmware_build import TARGETS, build, check_tools, compiler_option, write_sources
    from pimcal_serial.firmware_run import leaving_on_signals
    from pimcal_serial.firmware_run import run as run_board

    _check_options(out, target, define, run, pty, tcp)
    options = [compiler_option(each) for each in define or ()]
    chosen = TARGETS[target or "native"] if run or target else None
    if chosen:
        check_tools(chosen, to_run=run)
    with leaving_on_signals(), nullcontext(out) if out else tempfile.TemporaryDirectory(prefix="pimcal-") as name:
        folder = Path(name)
        count = write_sources(folder)
        if out:
            note(f"{out}: {count} files")
        program = build(folder, chosen, options) if chosen else None
        if program and out:
            note(f"built {program}")
        if program and chosen and run:
            run_board(chosen, program.absolute(), pty, tcp, typer.echo)


def _check_options(
    out: Path | None, target: str | None, define: list[str] | None, run: bool, pty: Path | None, tcp: int | None
) -> None:
    if out is None and not run:
        raise UsageError(
            "say where the firmware goes, with --out DIR; or run it, with --run and --pty PATH or --tcp PORT"
        )
    if run and (pty is None) == (tcp is None):
        raise UsageError("a running board has one port; give --pty PATH or --tcp PORT, one of them")
    if not run and (pty is not None or tcp is not None):
        raise UsageError("--pty and --tcp are for a board that runs; add --run")
    if define and not (run or target):
        raise UsageError("--define is for building; add --target")
