"""What a calibration could not correct, and why."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from pimcal.calibration.meter import Meter
from pimcal.errors import DataError

logger = logging.getLogger(__name__)

_NAMED = 4  # so many of the modules that share a reason
_TOO_FEW = "fewer than 2 values a channel came there at a time, which have no variance"
_REMEDY = "give more images in larger batches (calibration.batch_size), or use method 'affine'"


def tell_what_is_left(meter: Meter, wanted: Iterable[str], corrected: Iterable[str], values: Mapping[str, int]) -> None:
    """Say which of the modules `wanted` are not `corrected`. `values`: how many a channel were measured at most.

    A module where nothing came at all is part of a branch that these images do not take, and is told to the curious.
    Raises DataError where nothing at all could be measured.
    """
    corrected = set(corrected)
    left = {name: meter.unknown.get(name, _TOO_FEW) for name in wanted if name not in corrected}
    reached = {name: why for name, why in left.items() if values.get(name) or name in meter.unknown}
    logger.info("no value came to %s", _named(sorted(left.keys() - reached.keys())) or "no module")
    if not corrected:
        told = "; ".join(f"{name}: {why}" for name, why in list(reached.items())[:_NAMED]) or "no value came anywhere"
        raise DataError(f"calibration could measure nothing ({told}); {_REMEDY}")
    for why in dict.fromkeys(reached.values()):
        names = _named([name for name, other in reached.items() if other == why])
        logger.warning("calibration leaves %s as it is: %s; %s", names, why, _REMEDY)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
