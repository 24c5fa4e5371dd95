"""Others use the network in the middle of a calibration: what is in force serves them, and nothing is measured then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from pimcal.calibration.points import Point, Tap
from pimcal.device import Device

Pause = Callable[[], None]


def no_pause() -> None:
    """Nobody else wants the network."""


class Interlude:
    """Call it between two steps. `mvms`: products that went to others."""

    def __init__(self, device: Device, pause: Pause = no_pause) -> None:
        """`pause()` may call the network, with any corrections, which are the calibration's again after it."""
        self._device, self._pause = device, pause
        self._on = False
        self.mvms = 0

    def __call__(self, around: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """`around()`: a block within which the network is what others left of it."""
        if self._pause is no_pause:
            return
        before = self._device.cost.mvms
        self._on = True
        try:
            with around():
                self._pause()
        finally:
            self._on = False
            self.mvms += self._device.cost.mvms - before

    def deaf(self, tap: Tap) -> Tap:
        """`tap`, but what passes during an interlude is none of its business."""

        def listen(point: Point, tensor: Tensor) -> Tensor:
            return tensor if self._on else tap(point, tensor)

        return listen
