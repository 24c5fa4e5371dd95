"""What a store says is in force for a network, and whether it can be."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pimcal.deployment import Deployment
from pimcal.errors import ConfigError, DataError, PimcalError, StorageError
from pimcal.record import Record, check_fits
from pimcal.store import Generation, Key, Store, key_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Active:
    """The active generation, and its record."""

    generation: Generation
    record: Record


def find_active(store: Store, net: Deployment, *, anew: bool) -> Active | None:
    """What is in force by the store.

    Raises ConfigError for what does not fit, StorageError for what cannot be read; with `anew` it is told, and None.
    """
    key = key_of(net)
    generation = store.active(key)
    if generation is None:
        if not anew:
            _check_model(store, key)
        return None
    try:
        record = store.record(generation.id)
        check_fits(record, net.model_hash, net.device)
    except (DataError, StorageError) as error:
        if anew:
            logger.warning("calibrating anew: %s", error)
            return None
        raise _unfit(store, generation, error) from error
    return Active(generation, record)


def _check_model(store: Store, key: Key) -> None:
    others = [other for other in store.known_keys() if other.device == key.device]
    if others and key not in others:
        known = ", ".join(other.model_hash[:12] for other in others)
        raise ConfigError(
            f"store {store.folder} has calibrations of device {key.device} for another model (hash {known}), this one "
            f"has {key.model_hash[:12]}; check --model and --weights, or begin anew for this model with --new"
        )


def _unfit(store: Store, generation: Generation, error: PimcalError) -> PimcalError:
    told = f"generation {generation.id}, active in store {store.folder}, cannot be put in force: {error}"
    if isinstance(error, StorageError):
        return StorageError(f"{told}; go back with `pimcal records rollback`, or begin anew with --new")
    return ConfigError(f"{told}; check --profile and -O, or begin anew with --new")
