"""What a daemon tells of itself: what its worker does, and what is wrong beside that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pimcal import registry
from pimcal.daemon.journal import add_alert
from pimcal.daemon.status import Status
from pimcal.daemon.worker import Worker
from pimcal.errors import StorageError
from pimcal.events import RecalibrationAlert
from pimcal.store import Key, Store

logger = logging.getLogger(__name__)

STORE_WAIT_S = 2.0  # for another process that writes to the store: meanwhile the main thread does nothing else


class Overview:
    """`status` and `silent_s` are for any thread, the rest for one."""

    def __init__(self, worker: Worker, store: Path, now: Callable[[], float]) -> None:
        """`now()` is Unix time by the daemon's clock."""
        self.worker = worker
        self._store, self._now = store, now
        self._problems: dict[str, str] = {}  # replaced, never changed: another thread may be reading it
        self._untold: dict[str, str] = {}

    @property
    def status(self) -> Status:
        status = self.worker.status
        return replace(status, problems={**status.problems, **self._problems})

    def silent_s(self) -> float:
        return self.worker.silent_s()

    def problem(self, kind: str, message: str) -> None:
        """Something is wrong. Alerts to it, once for as long as it is the same."""
        logger.warning("%s: %s", kind, message)
        if self._problems.get(kind) != message:
            self._untold[kind] = message
        self._problems = {**self._problems, kind: message}
        self.tell()

    def solved(self, kind: str) -> None:
        self._untold.pop(kind, None)
        self._problems = {other: message for other, message in self._problems.items() if other != kind}

    def tell(self) -> None:
        """Alert to what nobody was alerted to yet, once it is known which device it is about."""
        status = self.worker.status
        if status.device is None or status.model_hash is None:
            return
        while self._untold:
            self._alert(Key(status.device, status.model_hash), *self._untold.popitem())

    def _alert(self, key: Key, kind: str, message: str) -> None:
        registry.emit(RecalibrationAlert(key.device, kind, message))
        try:
            with Store.open(self._store, clock=self._now, wait_s=STORE_WAIT_S) as store:
                add_alert(store, key, kind, message)
        except StorageError as error:
            logger.warning("this is not in the store's history: %s", error)
