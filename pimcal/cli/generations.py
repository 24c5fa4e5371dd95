"""`pimcal records ...` on a store: list, activate, rollback, pin, unpin, export, import, gc, migrate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pimcal.cli import stores as s
from pimcal.cli.durations import seconds
from pimcal.cli.options import MOST, Json
from pimcal.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from pimcal.store import Generation


def list_(
    store: s.StoreOption,
    every: Annotated[bool, typer.Option("--all", help="Also those whose tensors gc has removed.")] = False,
    device: s.Device = None,
    model_hash: s.ModelHash = None,
    as_json: Json = False,
) -> None:
    """List a store's generations, the oldest first."""
    from pimcal.store import Store

    opened = Store.open(store, read_only=True)
    keys = s.choose_keys(opened, device, model_hash)
    found = [each for each in opened.generations(collected=every) if each.key in keys]
    if as_json:
        print_json({"generations": [generation.as_dict() for generation in found]})
        return
    print_table(
        ("id", "state", "method", "before -> after", "created (UTC)", "device", "model", "reason"),
        [_row(generation) for generation in found],
    )


def _row(generation: Generation) -> tuple[object, ...]:
    created = str(generation.as_dict()["created_at"])[:19]
    marks = [generation.state, "pinned" * generation.pinned, "removed" * (generation.collected_at is not None)]
    about = (generation.device, generation.model_hash[:12], generation.reason)
    return (generation.id, " ".join(filter(None, marks)), generation.method, _metric(generation), created, *about)


def _metric(generation: Generation) -> str:
    if generation.metric is None or generation.metric_before is None or generation.metric_after is None:
        return ""
    return f"{generation.metric} {generation.metric_before:.4f} -> {generation.metric_after:.4f}"  # as reasons have it


def activate(
    generation: s.GenerationId, store: s.StoreOption, reason: s.Reason = s.ASKED, as_json: Json = False
) -> None:
    """Make a generation the active one of its device and model."""
    from pimcal.store import Store

    with Store.open(store) as opened:
        _tell(opened.activate(s.find(opened, generation).id, reason), "is active now", as_json)


def rollback(
    store: s.StoreOption,
    device: s.Device = None,
    model_hash: s.ModelHash = None,
    reason: s.Reason = s.ASKED,
    as_json: Json = False,
) -> None:
    """Go back to the generation that was active before; again, to the one before that."""
    from pimcal.store import Store

    with Store.open(store) as opened:
        _tell(opened.rollback(s.choose_key(opened, device, model_hash), reason), "is active again", as_json)


def pin(generation: s.GenerationId, store: s.StoreOption, reason: s.Reason = s.ASKED, as_json: Json = False) -> None:
    """Keep gc from removing a generation."""
    from pimcal.store import Store

    with Store.open(store) as opened:
        _tell(opened.pin(s.find(opened, generation).id, reason), "stays, whatever gc removes", as_json)


def unpin(generation: s.GenerationId, store: s.StoreOption, reason: s.Reason = s.ASKED, as_json: Json = False) -> None:
    """Undo pin."""
    from pimcal.store import Store

    with Store.open(store) as opened:
        _tell(opened.unpin(s.find(opened, generation).id, reason), "is no longer pinned", as_json)


def export(
    generation: s.GenerationId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the record goes.")],
    store: s.StoreOption,
    as_json: Json = False,
) -> None:
    """Write a generation's record to FILE, and its history beside it to FILE.history.json."""
    from pimcal.store import Store
    from pimcal.store.transfer import export_generation

    opened = Store.open(store, read_only=True)
    _tell(export_generation(opened, s.find(opened, generation).id, file), f"written to {file}", as_json)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A record's file.")],
    store: s.StoreOption,
    force: Annotated[
        bool, typer.Option("--force", help="Also for a device or a model that the store has nothing of.")
    ] = False,
    reason: s.Reason = s.ASKED,
    as_json: Json = False,
) -> None:
    """Add a record's file as a candidate; activate it afterwards, if you want it."""
    from pimcal.store import Store
    from pimcal.store.transfer import import_record, read_incoming

    incoming = read_incoming(file)  # before a store is made for it
    with Store.create(store) as opened:
        _tell(import_record(opened, incoming, reason, force=force), "is a candidate now", as_json)


def gc(
    store: s.StoreOption,
    keep: Annotated[
        int,
        typer.Option(
            "--keep", min=0, max=MOST, help="Of retired and of rejected generations so many of the newest stay."
        ),
    ] = 10,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="DURATION", help="Remove probes and telemetry that are older.")
    ] = "90d",
    reason: s.Reason = s.ASKED,
    as_json: Json = False,
) -> None:
    """Remove the tensors of old generations, old probes and telemetry, and files that nothing needs; history stays."""
    from pimcal.store import Store
    from pimcal.store.collect import collect_garbage

    older_than_s = seconds("--older-than", older_than)
    with Store.open(store) as opened:
        found = collect_garbage(opened, keep, reason, older_than_s=older_than_s)
    if as_json:
        print_json(asdict(found))
        return
    say(f"{len(found.generations)} generations and {found.files} files removed, {found.bytes:,} bytes")
    say(f"{found.probes} probes and {found.readings} readings of telemetry older than {older_than} removed")


def migrate(store: s.StoreOption, as_json: Json = False) -> None:
    """Bring a store of an older pimcal up to date."""
    from pimcal.store.migration import migrate_folder
    from pimcal.store.schema import VERSION

    before = migrate_folder(store)
    if as_json:
        print_json({"from": before, "to": VERSION})
    else:
        say(f"schema {VERSION}, {'as it was' if before == VERSION else f'from {before}'}")


def _tell(generation: Generation, what: str, as_json: bool) -> None:
    if as_json:
        print_json(generation.as_dict())
    else:
        say(f"generation {generation.id} ({generation.device}) {what}")
