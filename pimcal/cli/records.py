"""`pimcal records`: look at calibration records and compare them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pimcal.cli.options import Json
from pimcal.cli.output import print_json, print_table

app = typer.Typer(help="Calibration records: show, diff.", no_args_is_help=True)

RecordFile = Annotated[Path, typer.Argument(metavar="FILE")]


@app.command()
def show(record: RecordFile, as_json: Json = False) -> None:
    """Show what a record corrects, and what it was made with."""
    from pimcal.record import Record

    loaded = Record.load(record)
    layers = {
        name: {
            key: {"channels": value.numel(), "min": float(value.min()), "max": float(value.max())}
            for key, value in values.items()
        }
        for name, values in loaded.corrections.items()
    }
    about: dict[str, Any] = {"id": loaded.id, "method": loaded.method, **asdict(loaded.made_with)}
    if as_json:
        print_json({**about, "corrections": layers})
        return
    print_table(("field", "value"), [(key, "" if value is None else value) for key, value in about.items()])
    typer.echo("")
    rows = [
        (name, key, found["channels"], f"{found['min']:.4g}", f"{found['max']:.4g}")
        for name, values in layers.items()
        for key, found in values.items()
    ]
    print_table(("layer", "corrected", "channels", "min", "max"), rows)


@app.command()
def diff(first: RecordFile, second: RecordFile, as_json: Json = False) -> None:
    """Show what two records disagree on; tensors by their largest absolute difference."""
    from pimcal.record import Record, differences

    found = differences(Record.load(first), Record.load(second))
    if as_json:
        print_json(found)
        return
    print_table(("field", str(first), str(second)), [(key, *values) for key, values in found["fields"].items()])
    typer.echo("")
    changed = [(key, value) for key, value in found["tensors"].items() if value != 0.0]
    print_table(("tensor", "largest difference"), changed)
    typer.echo(f"{len(found['tensors']) - len(changed)} of {len(found['tensors'])} tensors are equal")
