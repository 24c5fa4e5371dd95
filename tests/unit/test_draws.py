"""Draws by key: their distribution, and that they depend on their key alone.

Distributions are tested at a level of 1e-6 with fixed keys.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from pimcal.draws import key_of, normal, normal_like, seeded

Z = 4.9  # two-sided level 1e-6
COUNT = 1_000_003


@pytest.fixture(scope="module")
def sample() -> torch.Tensor:
    return normal([(key_of(1, 2), COUNT)], mean=0.0, std=1.0).double()


def test_draws_are_normal(sample):
    expected = 0.5 * (1 + torch.special.erf(sample.sort().values / math.sqrt(2)))
    distance = (expected - (torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT).abs().max()
    assert float(distance) * math.sqrt(COUNT) < 2.7  # Kolmogorov-Smirnov


@pytest.mark.parametrize(("power", "moment"), [(1, 0), (2, 1), (3, 0), (4, 3), (6, 15)])
def test_draws_have_the_moments_of_the_normal_distribution(sample, power, moment):
    variance = math.prod(range(1, 2 * power, 2)) - moment**2
    assert abs(float((sample**power).mean()) - moment) < Z * math.sqrt(variance / COUNT)


@pytest.mark.parametrize("beyond", [3.0, 4.0, 4.5])
def test_both_tails_are_there(sample, beyond):
    expected = COUNT * NormalDist().cdf(-beyond)
    for tail in (sample, -sample):
        assert abs(int((tail > beyond).sum()) - expected) < Z * math.sqrt(expected) + 3


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 65536])
def test_neighbours_are_unrelated(sample, lag):
    for values in (sample, sample**2 - 1):
        covariance = float((values[:-lag] * values[lag:]).mean() / values.var())
        assert abs(covariance) < Z / math.sqrt(COUNT - lag)


def test_each_draw_is_the_quantile_of_its_32_bits():
    """Recomputed from AES block by block and with the standard library's quantiles."""
    key, count = key_of(3), 150_000  # more than is enciphered at once
    cipher = Cipher(algorithms.AES(bytes(16)), modes.ECB()).encryptor()
    blocks = b"".join(((key << 64) + block).to_bytes(16, "big") for block in range(-(-count // 4)))
    bits = np.frombuffer(cipher.update(blocks), np.int32)[:count]
    some = range(0, count, 997)
    drawn = normal([(key, count)], mean=2.0, std=0.5)
    for i in some:
        expected = NormalDist(2.0, 0.5).inv_cdf((bits[i] / 2**31 + 1) / 2)
        assert float(drawn[i]) == pytest.approx(expected, abs=2e-6)


def test_the_furthest_draws_are_finite(monkeypatch):
    ends = torch.tensor([-(2**31), 2**31 - 1, 0], dtype=torch.int32)
    monkeypatch.setattr("pimcal.draws._bits", lambda parts: ends)
    low, high, middle = normal([(0, 3)], mean=0.0, std=1.0).tolist()
    assert (low, middle) == (-high, 0.0)
    assert 5.3 < high < 5.5


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 50)), max_size=6))
def test_a_part_has_the_values_that_it_has_alone(parts):
    together = normal(parts, mean=0.1, std=0.3).split([count for _, count in parts])
    for part, values in zip(parts, together, strict=True):
        assert torch.equal(values, normal([part], mean=0.1, std=0.3))


def test_keys_have_unrelated_draws():
    drawn = torch.stack([normal([(key, 20_000)], mean=0.0, std=1.0) for key in (0, 1, 2, 2**63, 2**64 - 1)])
    correlation = torch.corrcoef(drawn).fill_diagonal_(0)
    assert float(correlation.abs().max()) < Z / math.sqrt(20_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_draws_like_a_tensor_have_its_shape_and_precision(dtype):
    drawn = normal_like(torch.empty(3, 5, dtype=dtype), key_of(1), mean=0.0, std=1.0)
    assert (drawn.shape, drawn.dtype) == ((3, 5), dtype)


def test_draws_are_on_the_cpu_whatever_torchs_default_device_is():
    with torch.device("meta"):
        drawn = normal([(1, 10)], mean=0.0, std=1.0)
    assert torch.equal(drawn, normal([(1, 10)], mean=0.0, std=1.0))


def test_a_seeded_block_leaves_the_global_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(7):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(7):
        assert torch.equal(torch.rand(3), first)
