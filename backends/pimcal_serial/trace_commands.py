"""`pimcal board trace`: what went over the line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pimcal.cli.options import MOST, Json
from pimcal.cli.output import print_json, print_table
from pimcal.errors import UsageError


def trace(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What --trace or device.trace has recorded.")],
    kind: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only these: HELLO, MVM, ..., BROKEN (no frame), EVENT."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=0, max=MOST, help="At most so many rows; left out: all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a recorded session with a board, frame by frame, and a summary."""
    from pimcal_serial.trace import Trace
    from pimcal_serial.trace_report import trace_report

    found = trace_report(Trace(file), _kinds(kind), limit)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _kinds(given: list[str] | None) -> list[str]:
    from pimcal.suggest import did_you_mean
    from pimcal_serial.trace_report import KINDS

    kinds = [name.upper() for name in given or []]
    for name in kinds:
        if name not in KINDS:
            raise UsageError(f"--type {name}: no such type{did_you_mean(name, KINDS)} (known: {', '.join(KINDS)})")
    return kinds


_COLUMNS = ("time_s", "direction", "type", "sequence", "tile", "status", "bytes", "meaning")


def _print(found: dict[str, Any]) -> None:
    head, summary = found["trace"], found["summary"]
    rows = [tuple("" if row[name] is None else _shown(row[name]) for name in _COLUMNS) for row in found["rows"]]
    print_table(_COLUMNS, rows, title=f"{head['port']}, recorded {head['started']} by pimcal {head['pimcal']}")
    frames = summary.pop("frames")
    print_table(("frames", "sent", "received"), [(name, *counts.values()) for name, counts in frames.items()])
    print_table(("", ""), [(name, _shown(value)) for name, value in summary.items()])


def _shown(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)
