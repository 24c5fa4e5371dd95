"""`pimcal records`: look at calibration records, compare them, and say which of a store's is active."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from pimcal.cli import generations
from pimcal.cli import stores as s
from pimcal.cli.options import Json
from pimcal.cli.output import print_json, print_table
from pimcal.shown import one_line

app = typer.Typer(help="Calibration records: look at them, and say which of a store's is active.", no_args_is_help=True)
app.command("list")(generations.list_)


@app.command()
def show(record: s.RecordName, store: s.OptionalStore = None, as_json: Json = False) -> None:
    """Show what a record corrects, and what it was made with."""
    loaded, generation = s.find_record(s.open_reader(store), record)
    layers = {
        name: {
            key: {"channels": value.numel(), "min": float(value.min()), "max": float(value.max())}
            for key, value in values.items()
        }
        for name, values in loaded.corrections.items()
    }
    about: dict[str, Any] = {"id": loaded.id, "method": loaded.method, **asdict(loaded.made_with)}
    where = {} if generation is None else generation.as_dict()
    if as_json:
        print_json({**about, "corrections": layers, **({"generation": where} if where else {})})
        return
    told = {**{f"generation {key}": where[key] for key in ("id", "state", "reason", "pinned") if where}, **about}
    print_table(("field", "value"), [(key, "" if value is None else value) for key, value in told.items()])
    typer.echo("")
    rows = [
        (name, key, found["channels"], f"{found['min']:.4g}", f"{found['max']:.4g}")
        for name, values in layers.items()
        for key, found in values.items()
    ]
    print_table(("layer", "corrected", "channels", "min", "max"), rows)


@app.command()
def diff(first: s.RecordName, second: s.RecordName, store: s.OptionalStore = None, as_json: Json = False) -> None:
    """Show what two records disagree on; tensors by their largest absolute difference."""
    from pimcal.record import differences

    opened = s.open_reader(store)
    found = differences(s.find_record(opened, first)[0], s.find_record(opened, second)[0])
    if as_json:
        print_json(found)
        return
    changed = [(key, value) for key, value in found["tensors"].items() if value != 0.0]
    if not found["fields"]:
        typer.echo("all fields are equal")
    else:
        print_table(
            ("field", one_line(first), one_line(second)), [(key, *values) for key, values in found["fields"].items()]
        )
    if changed:
        typer.echo("")
        print_table(("tensor", "largest difference"), changed)
    typer.echo(f"{len(found['tensors']) - len(changed)} of {len(found['tensors'])} tensors are equal")


app.command("activate")(generations.activate)
app.command("rollback")(generations.rollback)
app.command("pin")(generations.pin)
app.command("unpin")(generations.unpin)
app.command("export")(generations.export)
app.command("import")(generations.import_)
app.command("gc")(generations.gc)
app.command("migrate")(generations.migrate)
