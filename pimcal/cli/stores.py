"""What commands on a store share: their options, and what their arguments mean there."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pimcal.errors import UsageError

if TYPE_CHECKING:
    from pimcal.record import Record
    from pimcal.store import Generation, Key, Store
    from pimcal.store.events import Event

StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="The store: a folder.")]
OptionalStore = Annotated[Path | None, typer.Option("--store", metavar="DIR", help="The store: a folder.")]
GenerationId = Annotated[
    str, typer.Argument(metavar="ID", help="A generation: the beginning of its id, or `active` for the active one.")
]
RecordName = Annotated[
    str, typer.Argument(metavar="FILE|ID", help="A record's file; with --store a generation's id, or `active`.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why; history keeps it.")]
Device = Annotated[str | None, typer.Option("--device", metavar="IDENTITY", help="Only this device's.")]
ModelHash = Annotated[
    str | None, typer.Option("--model-hash", metavar="HASH", help="Only this model's; its beginning.")
]
ASKED = "asked for on the command line"


def open_reader(folder: Path | None) -> Store | None:
    """The store that an option names, for reading."""
    from pimcal.store import Store

    return None if folder is None else Store.open(folder, read_only=True)


def find(store: Store, name: str) -> Generation:
    """The generation that an argument means."""
    if name != "active":
        return store.generation(name)
    key = choose_key(store, None, None)
    found = store.active(key)
    if found is None:
        raise UsageError(f"no generation is active for {key}; `pimcal records list --store {store.folder}` shows all")
    return found


def find_record(store: Store | None, name: str) -> tuple[Record, Generation | None]:
    """A record from a file or, where there is a store and the name could be an id, from there."""
    from pimcal.record import Record

    if store is None or not (name == "active" or set(name) <= set("0123456789abcdef")):
        return Record.load(name), None
    generation = find(store, name)
    return store.record(generation.id), generation


def devices(store: Store) -> set[str]:
    """The devices that a store has generations for."""
    return {key.device for key in store.known_keys()}


def newest_of(
    store: Store, device: str | None, limit: int, *, generation: str | None = None, kinds: Collection[str] = ()
) -> list[Event]:
    """The newest lines of a store's history, oldest first; of one device where it is given.

    Raises UsageError where the store's history does not know that device.
    """
    found = store.journal.history(device=device, generation=generation, kinds=kinds, limit=limit)
    if device is not None and not found:
        known = devices(store) | {event.device for event in store.journal.history(limit=None) if event.device}
        if device not in known:
            told = ", ".join(sorted(known)) or "none yet"
            raise UsageError(f"store {store.folder} has no history of device {device!r}; it has that of: {told}")
    return found


def choose_keys(store: Store, device: str | None, model_hash: str | None) -> list[Key]:
    """The devices and models of a store that fit the options."""
    return [
        key
        for key in store.known_keys()
        if device in (None, key.device) and (model_hash is None or key.model_hash.startswith(model_hash))
    ]


def choose_key(store: Store, device: str | None, model_hash: str | None) -> Key:
    """The one device and model that fits the options. Raises UsageError where none does, or several."""
    found = choose_keys(store, device, model_hash)
    if len(found) == 1:
        return found[0]
    if found:
        told = "; ".join(map(str, found))
        raise UsageError(f"store {store.folder} has several: {told}; choose with --device and --model-hash, or by id")
    known = "; ".join(map(str, store.known_keys())) or "nothing yet"
    raise UsageError(f"store {store.folder} has nothing of that device and model; it has: {known}")
