"""What programming and time do to a tile's weights: aihwkit's noise models, with seeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pimcal.draws import seeded
from pimcal.errors import ConfigError, DataError

if TYPE_CHECKING:
    from aihwkit.inference.noise.base import BaseNoiseModel

# Of the drift, one tensor for each device of a weight; where spreads are tabulated, the largest weight behind them.
Coefficients = list[Tensor | None]

_FIRST_READ_S = 1.0  # the decay of `reram_cmo` is a fit over the logarithm of seconds, which starts here


class Conductances:
    """Programs weights ([cols, rows], largest magnitude 1) and lets them drift."""

    def __init__(self, model: BaseNoiseModel) -> None:
        self._model = model
        spreads: dict[float, list[float]] | None = getattr(model, "coeff_dic", None)
        self._spreads = dict(spreads) if spreads else None

    def program(self, weights: Tensor, key: int) -> tuple[Tensor, Coefficients]:
        """The weights as they come out of programming, and the drift coefficients drawn with them.

        Raises DataError for equal weights on a device that has one conductance for a weight.
        """
        with _quietly(key):
            programmed, drift = self._model.apply_programming_noise(weights)
        if not programmed.isfinite().all():
            raise DataError(
                "all weights of the tile are equal, which a device with one conductance for a weight cannot tell from "
                "zero: its smallest weight has the smallest conductance, its largest the largest"
            )
        return programmed, drift if self._spreads is None else [*drift, weights.abs().max().reshape(1)]

    def after(self, seconds: float, programmed: Tensor, drift: Coefficients, key: int, read_key: int) -> Tensor:
        """The weights so long after programming; `key` is that of the programming, `read_key` of this moment.

        Raises ConfigError where the model's parameters let conductances fall below zero.
        """
        if seconds <= 0:
            return programmed
        now = (
            self._drifted(seconds, programmed, drift, read_key)
            if self._spreads is None
            else self._spread(self._spreads, seconds, programmed, drift, key)
        )
        if not now.isfinite().all():
            raise ConfigError(
                f"{type(self._model).__name__} has no conductances left {seconds:g} s after programming; "
                "choose a larger g_min_microsiemens or a smaller drift_scale in device.noise"
            )
        return now

    def _drifted(self, seconds: float, programmed: Tensor, drift: Coefficients, key: int) -> Tensor:
        if hasattr(self._model, "decay_dict"):
            seconds = max(seconds, _FIRST_READ_S)
        with _quietly(key):
            return self._model.apply_drift_noise(programmed, drift, seconds)

    def _spread(
        self, spreads: dict[float, list[float]], seconds: float, programmed: Tensor, drift: Coefficients, key: int
    ) -> Tensor:
        """How far devices have spread by now: each keeps its place in that spread, so its key."""
        model: Any = self._model
        model.coeff_dic = {**spreads, seconds: _interpolated(spreads, seconds)}
        with _quietly(key):
            now: Tensor = model.apply_drift_noise(programmed, drift[:-1], seconds)
        # aihwkit reads the conductances of the targets back with the scale of what was programmed.
        largest = drift[-1]
        return now if largest is None else now * (largest / programmed.abs().max().clamp(min=1e-12))


@contextmanager
def _quietly(key: int) -> Iterator[None]:
    """Seeds the draws of aihwkit's code, and keeps its use of deprecated indexing to itself."""
    with seeded(key), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _interpolated(spreads: dict[float, list[float]], seconds: float) -> list[float]:
    """Coefficients between the measured times, linear in the logarithm of time; the nearest outside of them."""
    times = sorted(spreads)
    if seconds <= times[0] or seconds >= times[-1]:
        return spreads[times[0] if seconds <= times[0] else times[-1]]
    later = next(i for i, time in enumerate(times) if time >= seconds)
    start, end = times[later - 1], times[later]
    share = math.log(seconds / start) / math.log(end / start)
    return [a + share * (b - a) for a, b in zip(spreads[start], spreads[end], strict=True)]
