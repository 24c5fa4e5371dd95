"""What a keeper knows of its own doing, for whoever asks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from pimcal.daemon.status import Look
from pimcal.events import RecalibrationAlert
from pimcal.registry import emit

logger = logging.getLogger(__name__)

TOLD = "no remedy", "dead tiles", "accuracy"  # the engine alerts to these itself


@dataclass(slots=True)
class Notes:
    """`problems`: what is wrong now, by kind, as in `Status`. `changed()` is called when anything here changes."""

    device: str
    changed: Callable[[], None]
    last_look: Look | None = None
    problems: dict[str, str] = field(default_factory=dict)
    looks: int = 0
    activations: int = 0
    failures: int = 0

    def looked(self, look: Look) -> None:
        """A look, or a run of the engine, has ended."""
        self.looks += 1
        self.failures += look.outcome == "failed"
        self.activations += look.outcome == "activated"
        self.last_look = look
        logger.log(logging.WARNING if look.outcome == "failed" else logging.INFO, "%s: %s", look.outcome, look.reason)
        self.changed()

    def problem(self, kind: str, message: str) -> bool:
        """Something is wrong; whether that is new. Alerts once for each problem."""
        new = kind not in self.problems
        self.problems[kind] = message
        if new and kind not in TOLD:
            logger.warning("%s: %s", kind, message)
            emit(RecalibrationAlert(self.device, kind, message))
        self.changed()
        return new

    def solved(self, kind: str) -> None:
        if self.problems.pop(kind, None) is not None:
            logger.info("solved: %s", kind)
            self.changed()
