"""Records into and out of a store: the record's file, and its history beside it as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pimcal.errors import DataError
from pimcal.files import read_regular, replace_together
from pimcal.record import Record, read_file
from pimcal.store.clock import iso
from pimcal.store.generations import Key
from pimcal.store.tensors import content_of, hash_of

if TYPE_CHECKING:
    from pimcal.store.generations import Generation
    from pimcal.store.store import Store

FORMAT = "pimcal-history/1"
LARGEST_HISTORY = 2**28  # bytes: a million events


def history_file(path: Path) -> Path:
    """Where the history of an exported record is."""
    return path.with_name(f"{path.name}.history.json")


def export_generation(store: Store, generation_id: str, path: Path) -> Generation:
    """Write a generation's record as `Record.save` does, and its history beside it; both files or none."""
    generation = store.generation(generation_id)
    content = content_of(store.folder, generation)
    events = store.journal.history(generation=generation.id, limit=None)
    history = {
        "format": FORMAT,
        "generation": generation.as_dict(),
        "events": [{**asdict(event), "at": iso(event.at)} for event in events],
    }
    told = json.dumps(history, indent=2).encode()
    replace_together(path.parent, {path.name: content, history_file(path).name: told})
    return generation


@dataclass(frozen=True, slots=True)
class Incoming:
    """A record from elsewhere. `origin`: its id in the store that it comes from, None where no history is with it."""

    path: Path
    record: Record
    origin: str | None


def read_incoming(path: Path) -> Incoming:
    """Read a record's file, once, and the history beside it, if there is one.

    Raises DataError for a file that is no record, or that differs from what its history tells.
    """
    content = read_file(path)
    record = Record.from_bytes(content, path)
    return Incoming(path, record, _checked_history(path, content, record))


def import_record(store: Store, incoming: Incoming, reason: str, *, force: bool = False) -> Generation:
    """Add a record as a candidate; nothing becomes active.

    Raises DataError for one that is in the store already, or (unless `force`) for a device or model of which the store
    has nothing.
    """
    path, record = incoming.path, incoming.record
    key = Key.of(record)
    sha256 = hash_of(record.to_bytes())
    same = [each.id for each in store.generations(key) if each.sha256 == sha256]
    if same:
        raise DataError(f"{path} is in store {store.folder} already, as generation {same[0]}")
    known = store.known_keys()
    if known and key not in known and not force:
        raise DataError(
            f"{path} was made for {key}, and store {store.folder} is for {'; '.join(map(str, known))}; "
            "name another store, or import it all the same (--force)"
        )
    return store.add_candidate(record, reason, kind="imported", details={"file": path.name, "origin": incoming.origin})


def _checked_history(path: Path, content: bytes, record: Record) -> str | None:
    """The id that the record had in the store that it comes from, None where no history is beside it."""
    beside = history_file(path)
    if not beside.exists():
        return None
    try:
        found = json.loads(read_regular(beside, LARGEST_HISTORY))
        if found["format"] != FORMAT:
            raise DataError(f"{beside}: format {found['format']!r}, this pimcal reads {FORMAT!r}")
        told: dict[str, Any] = found["generation"]
        theirs = {name: str(told[name]) for name in ("id", "sha256", "record_id", "device", "model_hash")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{beside}: no history of a record ({type(error).__name__}: {error}); remove it") from error
    made = record.made_with
    ours = {
        "sha256": hash_of(content),
        "record_id": record.id,
        "device": made.device,
        "model_hash": made.model_hash,
    }
    differing = [name for name, value in ours.items() if theirs[name] != value]
    if differing:
        raise DataError(
            f"{path} is not what {beside.name} tells of (they differ in {', '.join(differing)}); export it again"
        )
    return theirs["id"]
