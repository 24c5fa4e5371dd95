"""How eta0 changes with simulated time: pure functions of the time, however it was reached."""

from __future__ import annotations

import math

from pimcal.draws import key_of, normal
from pimcal_gaussian.settings import (
    Drift,
    LinearDrift,
    LogarithmicDrift,
    RandomWalkDrift,
    TemperatureDrift,
)


def eta0_ratio(drift: Drift | None, time_s: float, walk: RandomWalk) -> float:
    """eta0(t) / eta0, never below 0."""
    match drift:
        case LinearDrift():
            change = drift.rate_per_s * time_s
        case LogarithmicDrift():
            change = drift.amplitude * math.log1p(time_s / drift.time_constant_s)
        case TemperatureDrift():
            change = drift.eta0_per_c * (temperature_c(drift, time_s) - drift.mean_temperature_c)
        case RandomWalkDrift():
            change = drift.std * walk.position(whole_steps(time_s, drift.step_s))
        case _:
            change = 0.0
    return max(0.0, 1.0 + change)


def temperature_c(drift: TemperatureDrift, time_s: float) -> float:
    """The simulated temperature."""
    return drift.mean_temperature_c + drift.amplitude_c * math.sin(2 * math.pi * time_s / drift.period_s)


def whole_steps(time_s: float, step_s: float) -> int:
    """How many steps have passed; ten times 0.1 s are 1 s here, whatever floating-point addition says."""
    return math.floor(time_s / step_s * (1 + 1e-12) + 1e-9)


class RandomWalk:
    """Partial sums of standard normal draws that depend on `key` alone."""

    block = 4096

    def __init__(self, key: int) -> None:
        self._key = key
        self._starts = [0.0]  # the position before each block that was reached

    def position(self, steps: int) -> float:
        """The sum of the first `steps` draws."""
        block, rest = divmod(steps, self.block)
        while len(self._starts) <= block:
            self._starts.append(self._starts[-1] + self._sum(len(self._starts) - 1, self.block))
        return self._starts[block] + self._sum(block, rest)

    def _sum(self, block: int, steps: int) -> float:
        draws = normal([(key_of(self._key, block), self.block)], mean=0.0, std=1.0)
        return float(draws[:steps].double().sum())
