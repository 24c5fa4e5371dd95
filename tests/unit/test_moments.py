"""Estimators, against numpy over the pooled samples and whatever way the batches are split."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pimcal.calibration.moments import Moments, matched_gain, merge, moments, moving_average, paired_statistics


@settings(max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.sampled_from([(), (4,), (2, 3)]), st.integers(-100, 100))
def test_moments_do_not_depend_on_how_the_samples_are_split(sizes, positions, shift):
    values = (
        torch.randn(sum(sizes), 3, *positions) * torch.tensor([1.0, 0.1, 7.0]).reshape(3, *[1] * len(positions)) + shift
    )

    found = merge([moments(part) for part in values.split(sizes)])

    pooled = values.double().transpose(0, 1).reshape(3, -1).numpy()
    assert found.count == pooled.shape[1]
    np.testing.assert_allclose(found.mean.numpy(), pooled.mean(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.var.numpy(), pooled.var(1), rtol=1e-3, atol=1e-3)
    if found.count > 1:
        np.testing.assert_allclose(found.unbiased_var.numpy(), pooled.var(1, ddof=1), rtol=1e-3, atol=1e-3)


@given(st.integers(-4, 3))
def test_channels_may_be_any_dimension(channel_dim):
    values = torch.randn(3, 4, 5, 2)

    found = moments(values, channel_dim)

    channels = np.moveaxis(values.double().numpy(), channel_dim, 0).reshape(values.shape[channel_dim], -1)
    np.testing.assert_allclose(found.mean.numpy(), channels.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.var.numpy(), channels.var(1), rtol=1e-4, atol=1e-5)


def test_one_value_a_channel_has_no_spread():
    found = moments(torch.tensor([1.0, 2.0]), channel_dim=0)

    assert found.count == 1
    assert found.mean.tolist() == [1.0, 2.0]
    assert found.unbiased_var.tolist() == [0.0, 0.0]


def test_moments_are_what_batchnorm_records_in_training():
    norm = torch.nn.BatchNorm2d(3, momentum=1.0)
    values = torch.randn(4, 3, 5, 5) * 3 + 1
    norm(values)

    found = moments(values)

    torch.testing.assert_close(found.mean.float(), norm.running_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.unbiased_var.float(), norm.running_var, rtol=1e-4, atol=1e-5)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(0, 1))
def test_a_moving_average_is_the_first_value_and_then_the_weighted_sum(values, momentum):
    found = None
    for value in values:
        found = moving_average(found, torch.tensor(value, dtype=torch.float64), momentum)

    n = len(values) - 1
    weights = [momentum**n] + [(1 - momentum) * momentum ** (n - k) for k in range(1, n + 1)]
    assert float(found) == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)), abs=1e-9)


def test_equal_moments_change_not_a_single_bit():
    mean, var = torch.randn(50), torch.rand(50) * 1e-3
    same = moments(torch.randn(7, 50, 3) * 1e3)

    found = paired_statistics(mean, var, same, same, 1e-5)

    assert torch.equal(found[0], mean)
    assert torch.equal(found[1], var)


def test_paired_statistics_recover_what_the_device_did_whatever_the_images_were():
    running_mean, running_var = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.25])
    clean = torch.randn(5, 2) * 3 + 10  # far from what the statistics say
    gain, shift = torch.tensor([1.5, 0.5]), torch.tensor([0.1, -3.0])

    mean, var = paired_statistics(running_mean, running_var, moments(clean), moments(clean * gain + shift), 0.0)

    device_mean = (clean * gain + shift).mean(0) - clean.mean(0) + running_mean
    torch.testing.assert_close(mean, device_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(var, running_var * gain**2, rtol=1e-4, atol=1e-5)


def test_a_dead_channel_stays_as_it_is():
    dead = Moments(10, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    mean, var = paired_statistics(torch.zeros(1), torch.full((1,), 1e-12), dead, dead, 1e-5)

    assert mean.item() == 0.0
    assert var.item() == pytest.approx(1e-12)
    assert [v.item() for v in matched_gain(dead, dead)] == [1.0, 0.0]


def test_a_matched_gain_gives_the_noisy_values_the_clean_mean_and_variance():
    clean, noisy = torch.randn(40, 3) * 2 + 1, torch.randn(40, 3) * torch.tensor([0.1, 5.0, 1.0]) - 4

    gain, offset = matched_gain(moments(clean), moments(noisy))

    corrected = noisy * gain + offset
    torch.testing.assert_close(corrected.mean(0), clean.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(corrected.std(0), clean.std(0), rtol=1e-4, atol=1e-4)


def test_a_channel_that_is_constant_is_only_moved():
    clean, noisy = torch.full((4, 1), 3.0), torch.full((4, 1), 5.0)

    gain, offset = matched_gain(moments(clean), moments(noisy))

    assert (gain.item(), offset.item()) == (1.0, -2.0)
