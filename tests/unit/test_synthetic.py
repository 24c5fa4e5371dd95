"""Synthetic images: their spectrum, their statistics, and that a seed decides them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pimcal.errors import UsageError
from pimcal.synthetic import synthetic_images


def made(count, shape, seed=0, **options):
    return synthetic_images(count, shape, torch.Generator().manual_seed(seed), **options)


def spectral_slope(images):
    """Least squares of log mean amplitude over log frequency, by numpy's full Fourier transform."""
    size = images.shape[-1]
    amplitude = np.sqrt((np.abs(np.fft.fft2(images)) ** 2).mean(axis=(0, 1)))
    rows, cols = np.meshgrid(*[np.fft.fftfreq(size) * size] * 2, indexing="ij")
    radius = np.hypot(rows, cols)
    inside = (radius >= 1) & (radius < size / 2 - 1)
    slope, _ = np.polyfit(np.log(radius[inside]), np.log(amplitude[inside]), 1)
    return -slope


@pytest.mark.parametrize("slope", [0.5, 1.0, 1.5, 2.0])
def test_amplitudes_fall_with_frequency_by_the_slope(slope):
    assert spectral_slope(made(200, (1, 48, 48), slope=slope).numpy()) == pytest.approx(slope, abs=0.05)


def test_the_default_is_smoother_than_natural_scenes():
    assert spectral_slope(made(200, (3, 48, 48)).numpy()) == pytest.approx(1.5, abs=0.05)


@given(seed=st.integers(0, 2**63 - 1), shape=st.tuples(*[st.integers(1, 9)] * 3), count=st.integers(1, 5))
def test_a_seed_decides_every_value(seed, shape, count):
    first = made(count, shape, seed)
    assert first.shape == (count, *shape)
    assert first.dtype == torch.float32
    assert torch.isfinite(first).all()
    assert torch.equal(first, made(count, shape, seed))
    assert not torch.equal(first, made(count, shape, (seed + 1) % 2**63))


def test_the_generator_goes_on_so_that_a_second_call_gives_other_images():
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(synthetic_images(4, (1, 8, 8), generator), synthetic_images(4, (1, 8, 8), generator))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    made(3, (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_brightness_and_contrast_differ_from_image_to_image():
    flat = made(4000, (1, 16, 16), grey=1.0).numpy().reshape(4000, -1)
    brightness, contrast = flat.mean(1), flat.std(1)
    assert brightness.mean() == pytest.approx(0, abs=0.03)
    assert brightness.std() == pytest.approx(0.5, abs=0.03)
    assert 0.49 < contrast.min() < 0.55 < 1.45 < contrast.max() < 1.51  # uniform in 0.5 to 1.5
    assert contrast.mean() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("grey", [0.0, 0.6, 0.95, 1.0])
def test_channels_share_the_grey_part_of_their_amplitude(grey):
    flat = made(2000, (3, 12, 12), grey=grey).numpy().reshape(2000, 3, -1)
    centred = flat - flat.mean(axis=2, keepdims=True)
    red, blue = centred[:, 0], centred[:, 2]
    found = (red * blue).mean(1) / np.sqrt((red**2).mean(1) * (blue**2).mean(1))
    assert found.mean() == pytest.approx(grey**2, abs=0.04)


@pytest.mark.parametrize("shape", [(8, 8), (), (3, 8, 8, 8), (0, 8, 8), (3, -1, 8)])
def test_what_is_no_shape_of_an_image_is_refused(shape):
    with pytest.raises(UsageError, match=r"a shape of channels, height, width, for example 3,32,32"):
        made(2, shape)
