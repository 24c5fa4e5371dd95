"""A device that cannot be used for a while: looked for ever more rarely, and told of once, then each hour."""

from __future__ import annotations

import logging

from pimcal import registry
from pimcal.daemon.journal import add_alert
from pimcal.errors import ConfigError, PimcalError, StorageError
from pimcal.events import RecalibrationAlert
from pimcal.store import Key, Store

logger = logging.getLogger(__name__)

RETRY_S, LONGEST_RETRY_S = 1.0, 60.0  # before it is tried again: doubles each time
REMIND_S = 3600.0
DEVICE_LOST = "device lost"
_DOUBLINGS = 10  # more than enough for the longest


class Lost:
    """Since when, why, and how often it was tried. All seconds are of the daemon's clock."""

    def __init__(self, error: PimcalError, now_s: float) -> None:
        self.since_s = self._told_s = now_s
        self.tries = 0
        self.kind, self.reason = _kind(error), str(error)

    @property
    def retry_s(self) -> float:
        """How long to wait before the next try."""
        return min(RETRY_S * 2.0 ** min(self.tries, _DOUBLINGS), LONGEST_RETRY_S)

    def again(self, error: PimcalError, now_s: float) -> None:
        """It was tried, in vain."""
        self.tries += 1
        self.kind, self.reason = _kind(error), str(error)
        if now_s - self._told_s >= REMIND_S:
            self._told_s = now_s
            logger.warning("still lost, after %d tries: %s", self.tries, self.reason)


def _kind(error: PimcalError) -> str:
    """What is wrong: the device itself, its configuration, or a file that belongs to it."""
    if isinstance(error, ConfigError):
        return "configuration"
    return "storage" if isinstance(error, StorageError) else DEVICE_LOST


def alert(store: Store, key: Key, kind: str, message: str) -> None:
    """Tell the log, the plugins, and the store's history, where that can be written."""
    logger.warning("%s: %s", kind, message)
    registry.emit(RecalibrationAlert(key.device, kind, message))
    write_alert(store, key, kind, message)


def write_alert(store: Store, key: Key, kind: str, message: str) -> None:
    """The last part of `alert` alone."""
    try:
        add_alert(store, key, kind, message)
    except StorageError as error:
        logger.warning("this is not in the store's history: %s", error)
