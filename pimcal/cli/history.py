"""`pimcal history`: what happened to a store, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pimcal.cli import stores as s
from pimcal.cli.options import MOST, Json
from pimcal.cli.output import print_json, print_table


def history(
    store: s.StoreOption,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MOST, help="How many of the newest events.")] = 50,
    generation: Annotated[
        str | None, typer.Option("--generation", metavar="ID", help="Only what is about this generation.")
    ] = None,
    device: s.Device = None,
    as_json: Json = False,
) -> None:
    """Show what happened to a store, when and why; the newest event is the last."""
    from pimcal.store import Store
    from pimcal.store.clock import iso

    opened = Store.open(store, read_only=True)
    wanted = None if generation is None else s.find(opened, generation).id
    events = s.newest_of(opened, device, limit, generation=wanted)
    if as_json:
        print_json({"events": [{**asdict(event), "at": iso(event.at)} for event in events]})
        return
    rows = [(iso(event.at), event.kind, event.generation or "", event.device or "", event.reason) for event in events]
    print_table(("time", "event", "generation", "device", "reason"), rows)
