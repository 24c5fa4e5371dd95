"""What programming and time do to a tile's weights: aihwkit's noise models, with seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pimcal.draws import seeded

if TYPE_CHECKING:
    from aihwkit.inference.noise.base import BaseNoiseModel

Coefficients = list[Tensor | None]  # of the drift, one tensor for each device of a weight


class Conductances:
    """Programs weights ([cols, rows], largest magnitude 1) and lets them drift."""

    def __init__(self, model: BaseNoiseModel) -> None:
        self._model = model
        spreads: dict[float, list[float]] | None = getattr(model, "coeff_dic", None)
        self._spreads = dict(spreads) if spreads else None

    def program(self, weights: Tensor, key: int) -> tuple[Tensor, Coefficients]:
        """The weights as they come out of programming, and the drift coefficients drawn with them."""
        with seeded(key):
            return self._model.apply_programming_noise(weights)

    def after(self, seconds: float, programmed: Tensor, drift: Coefficients, key: int, read_key: int) -> Tensor:
        """The weights so long after programming; `key` is that of the programming, `read_key` of this moment."""
        if seconds <= 0:
            return programmed
        if self._spreads is None:
            with seeded(read_key):
                return self._model.apply_drift_noise(programmed, drift, seconds)
        # A table of how far devices have spread by now: each keeps its place in that spread, so its key.
        model: Any = self._model
        model.coeff_dic = {**self._spreads, seconds: _interpolated(self._spreads, seconds)}
        with seeded(key):
            return model.apply_drift_noise(programmed, drift, seconds)


def _interpolated(spreads: dict[float, list[float]], seconds: float) -> list[float]:
    """Coefficients between the measured times, linear in the logarithm of time; the nearest outside of them."""
    times = sorted(spreads)
    if seconds <= times[0] or seconds >= times[-1]:
        return spreads[times[0] if seconds <= times[0] else times[-1]]
    later = next(i for i, time in enumerate(times) if time >= seconds)
    start, end = times[later - 1], times[later]
    share = math.log(seconds / start) / math.log(end / start)
    return [a + share * (b - a) for a, b in zip(spreads[start], spreads[end], strict=True)]
