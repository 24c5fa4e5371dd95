"""What a calibration is worth: its metric on the held-out images, now and when it was made."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Worth:
    """All values are the metric's, None where they are not known yet.

    `level`: right after the last whole calibration. `best`: the best level so far. `value`: what was measured last of
    what is in force. `good_enough`, `alarming`: drops, against the level and against the best.
    """

    higher_is_better: bool
    good_enough: float
    alarming: float
    level: float | None = None
    best: float | None = None
    value: float | None = None

    def calibrated(self, value: float) -> None:
        """A whole calibration is in force, or what was found to be no worse than one of today."""
        self.level = self.value = value
        if self.best is None or self._drop(value, self.best) > 0:
            self.best = value

    def is_good(self, value: float | None) -> bool:
        """Whether such a value is no reason for a larger remedy. Nothing is known against the first one."""
        if value is None or math.isnan(value):
            return False
        return self.level is None or self._drop(self.level, value) <= self.good_enough

    def is_alarming(self, value: float) -> bool:
        """A value that is no number is."""
        return self.best is not None and not self._drop(self.best, value) <= self.alarming

    @property
    def shortfall(self) -> str | None:
        """How far what is in force is below the best, where somebody should know."""
        if self.best is None or self.value is None or not self.is_alarming(self.value):
            return None
        drop = self._drop(self.best, self.value)
        return f"{self.value:.4f}, it was {self.best:.4f}: a drop of {drop:.4f} (told from {self.alarming:g} on)"

    def _drop(self, before: float, after: float) -> float:
        return before - after if self.higher_is_better else after - before
