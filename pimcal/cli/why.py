"""`pimcal why`: the last decisions about a device, with their reasons."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pimcal.cli import stores as s
from pimcal.cli.options import MOST, Json
from pimcal.cli.output import print_json, print_table


def why(
    store: s.StoreOption,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MOST, help="How many of the newest.")] = 20,
    device: s.Device = None,
    as_json: Json = False,
) -> None:
    """Show what the daemon decided, what came of it and why; the newest is the last."""
    from pimcal.daemon.why import KINDS
    from pimcal.store import Store
    from pimcal.store.clock import iso

    opened = Store.open(store, read_only=True)
    found = s.newest_of(opened, device, limit, kinds=KINDS)
    if as_json:
        print_json({"decisions": [{**asdict(event), "at": iso(event.at)} for event in found]})
        return
    columns: dict[str, list[str | None]] = {
        "time": [iso(event.at) for event in found],
        "what": [event.kind for event in found],
        "device": [event.device or "" for event in found],
        "reason": [event.reason for event in found],
    }
    if len(s.devices(opened).union(columns["device"]) - {""}) < 2:
        del columns["device"]
    print_table(tuple(columns), list(zip(*columns.values(), strict=True)))
