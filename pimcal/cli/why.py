"""`pimcal why`: the last decisions about a device, with their reasons."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pimcal.cli import stores as s
from pimcal.cli.options import Json
from pimcal.cli.output import print_json, print_table


def why(
    store: s.StoreOption,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many of the newest.")] = 20,
    as_json: Json = False,
) -> None:
    """Show what the daemon decided, what came of it and why, the newest first."""
    from pimcal.daemon.why import reasons
    from pimcal.store import Store
    from pimcal.store.clock import iso

    found = reasons(Store.open(store, read_only=True), limit)
    if as_json:
        print_json({"decisions": [{**asdict(event), "at": iso(event.at)} for event in found]})
        return
    print_table(("time", "what", "reason"), [(iso(event.at), event.kind, event.reason) for event in found])
