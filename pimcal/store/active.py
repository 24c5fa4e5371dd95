"""What an inference process needs of a store, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pimcal.errors import DataError
from pimcal.store.generations import Key
from pimcal.store.store import Store

if TYPE_CHECKING:
    from pimcal.deployment import Deployment
    from pimcal.record import Record


def key_of(net: Deployment) -> Key:
    """The device and model of a deployed network."""
    return Key(net.device.capabilities.identity, net.model_hash)


def load_active(store: str | Path, net: Deployment) -> Record:
    """The record that is active for a network's device and model: `net.apply(pimcal.load_active("store", net))`.

    Needs no permission to write, and waits for nobody. Raises DataError where none is active, StorageError where there
    is no store, or the record's file is missing or damaged.
    """
    key = key_of(net)
    record = Store.open(store, read_only=True).active_record(key)
    if record is None:
        raise DataError(
            f"no record is active for {key} in store {store}; make one with `pimcal calibrate --store {store}`"
        )
    return record
