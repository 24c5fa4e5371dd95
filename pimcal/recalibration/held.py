"""What is in force on the host stays in force, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pimcal.corrections import corrections_in_force, set_corrections
from pimcal.deployment import Deployment

_KEPT = 2  # records that can be reverted to on the host; older ones are in the store


@contextmanager
def kept_on_error(net: Deployment) -> Iterator[None]:
    """After an exception in the block, Ctrl-C among them, the corrections that were in force before are so again."""
    records, corrections = net.get_extra_state()["active"], corrections_in_force(net)
    try:
        yield
    except BaseException:
        net.set_extra_state({"device": {}, "active": records})
        set_corrections(net, corrections)
        raise


def forget_old_records(net: Deployment) -> None:
    """Keep the record in force and the one before it: a network that is corrected for years must not grow."""
    records = net.get_extra_state()["active"]
    if len(records) > _KEPT:
        net.set_extra_state({"device": {}, "active": records[-_KEPT:]})
