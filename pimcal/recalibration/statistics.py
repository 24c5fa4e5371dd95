"""Drift told from temporal noise: what of an answer has changed, and how sure that is. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

KINDS = ("gain", "offset", "noise", "shape")

_SIDES = 5  # gain and offset go both ways, the power of the rest is looked at upwards only
# Where a device hardly fluctuates, spreads below these are not taken at their word (gain, offset, log of power).
_LEAST_SPREAD = (0.001, 0.001, 0.05)
_LEAST_POWER = 1e-4  # of the rest: 1 % of the answers


@dataclass(frozen=True, slots=True)
class Parts:
    """Draws [draws, n, cols] compared with what was accepted, a [n, cols]; d is the difference.

    `gain` [draws] is <d, a> / <a, a>: what all weights have in common. `offset` [draws] is the projection of d on the
    sums of the inputs, in units of a's root mean square: what was added to all weights. `rest` [draws, n * cols] is
    what those two cannot explain, in units of the norm of a.

    All are independent and equally distributed over draws that had no part in a, where nothing drifts.
    """

    gain: Tensor
    offset: Tensor
    rest: Tensor

    @property
    def power(self) -> Tensor:
        """Of the rest [draws]."""
        return self.rest.square().sum(1)

    @property
    def numbers(self) -> Tensor:
        """What the tests look at [draws, 3]: gain, offset, logarithm of the power."""
        return torch.stack([self.gain, self.offset, (self.power + _LEAST_POWER).log()], dim=1)

    @property
    def lasting_power(self) -> float:
        """The power of what all draws' rests have in common, without bias: the mean product of two of them."""
        draws = len(self.rest)
        return float(self.rest.sum(0).square().sum() - self.power.sum()) / (draws * (draws - 1))


def parts_of(answers: Tensor, accepted: Tensor, sums: Tensor) -> Parts:
    """`answers` [draws, n, cols] (2 draws or more), `accepted` [n, cols], `sums` of the inputs [n], all float64."""
    a = accepted.flatten()
    s = sums[:, None].expand_as(accepted).flatten()
    d = answers.flatten(1) - a
    norm = a.norm()
    basis = torch.linalg.qr(torch.stack([a / norm, s / s.norm()], dim=1)).Q
    rest = (d - d @ basis @ basis.T) / norm
    return Parts(d @ a / norm.square(), d @ s / (s.norm() * norm), rest)


def spread(numbers: Tensor) -> Tensor:
    """The standard deviation over draws [draws, 3] of each number [3], at least what matters at all."""
    return torch.maximum(numbers.std(0), numbers.new_tensor(_LEAST_SPREAD))


def normal_scores(change: Tensor, error: Tensor, draws: int) -> Tensor:
    """How far a change is from chance, in standard deviations of a normal distribution.

    Student's t of `change` against its standard `error`, which `draws` independent draws told; then Wallace's
    transformation, good to 0.1 in the tails (Wallace, Ann. Math. Statist. 30, 1121, 1959).
    """
    freedom, t = draws - 1, change / error
    z = (freedom * (t.square() / freedom).log1p()).sqrt() * ((8 * freedom + 1) / (8 * freedom + 3))
    return z.copysign(t)


def combined(scores: Tensor) -> Tensor:
    """Scores of all tiles [tiles, 3] as one [3], again standard normal where nothing changed (Stouffer)."""
    return scores.sum(0) / math.sqrt(len(scores))


def threshold(false_alarms: float, tests: int) -> float:
    """The score that any of `tests` triples exceeds by chance, in any of their directions, with this probability.

    Bonferroni's bound: it holds whatever the tests have in common.
    """
    return NormalDist().inv_cdf(1 - false_alarms / (_SIDES * tests))
