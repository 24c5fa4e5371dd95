"""The probe's tests: what they take for a change, and how often they do so by chance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pimcal.recalibration.statistics import combined, normal_scores, parts_of, spread, threshold

SUMS = torch.tensor([3.0, 5.0], dtype=torch.float64)


def answers(seed: int, draws: int, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    accepted = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    drawn = torch.randn(draws, 2, 16, generator=generator, dtype=torch.float64)
    return accepted, accepted + noise * drawn


@given(st.floats(-0.5, 0.5), st.integers(0, 50))
def test_a_common_factor_is_gain_and_leaves_no_rest(change: float, seed: int) -> None:
    accepted, _ = answers(seed, 2)
    parts = parts_of(((1 + change) * accepted).expand(3, 2, 16), accepted, SUMS)
    assert parts.gain.tolist() == pytest.approx([change] * 3, abs=1e-9)
    assert float(parts.power.max()) < 1e-12


@given(st.floats(-0.5, 0.5), st.integers(0, 50))
def test_what_is_added_to_every_weight_is_offset_in_units_of_the_answers(added: float, seed: int) -> None:
    accepted, _ = answers(seed, 2)
    parts = parts_of((accepted + added * SUMS[:, None]).expand(3, 2, 16), accepted, SUMS)
    size = added * SUMS.square().mean().sqrt() / accepted.square().mean().sqrt()
    assert parts.offset.tolist() == pytest.approx([float(size)] * 3, abs=1e-9)
    assert float(parts.power.max()) < 1e-12


def test_lasting_power_is_that_of_what_all_draws_share_without_the_noise() -> None:
    accepted, _ = answers(0, 2)
    shape = torch.randn(2, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 0.2
    noise = torch.randn(4000, 2, 16, generator=torch.Generator().manual_seed(8), dtype=torch.float64) * 0.5
    pure = parts_of((accepted + shape).expand(2, 2, 16), accepted, SUMS)
    noisy = parts_of(accepted + shape + noise, accepted, SUMS)
    assert noisy.lasting_power == pytest.approx(float(pure.power[0]), rel=0.1)
    assert float(noisy.power.mean()) > 3 * noisy.lasting_power


def test_scores_of_normal_draws_are_standard_normal() -> None:
    """5,000 t statistics with 31 degrees of freedom, against the normal distribution's own tails."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(5000, 32, generator=generator, dtype=torch.float64)
    now = torch.randn(5000, 4, generator=generator, dtype=torch.float64)
    error = before.std(1) * math.sqrt(1 / 4 + 1 / 32)
    scores = normal_scores(now.mean(1) - before.mean(1), error, 32)
    for z, share in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):
        assert float((scores.abs() > z).double().mean()) == pytest.approx(share, abs=4 * math.sqrt(share / 5000))


@given(st.floats(-50, 50), st.integers(3, 40))
def test_a_score_has_the_sign_of_its_change_and_is_no_larger(t: float, draws: int) -> None:
    score = float(normal_scores(torch.tensor([t], dtype=torch.float64), torch.ones(1), draws))
    assert score * t >= 0
    assert abs(score) <= abs(t) + 1e-6


def test_scores_that_agree_add_up() -> None:
    assert combined(torch.ones(25, 3)).tolist() == [5.0, 5.0, 5.0]


def test_more_tests_need_a_higher_score() -> None:
    assert threshold(0.001, 1) == pytest.approx(3.54, abs=0.01)  # 0.9998 of a normal distribution
    assert threshold(0.001, 100) > threshold(0.001, 10) > threshold(0.001, 1)


def test_a_spread_of_nothing_is_not_taken_at_its_word() -> None:
    assert bool((spread(torch.zeros(8, 3, dtype=torch.float64)) > 0).all())
