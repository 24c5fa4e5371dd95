"""The distribution of the effective weights, against the formulas.

Means and standard deviations are tested at a level of 1e-6 (4.9 standard errors) with fixed seeds.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pimcal
from pimcal.draws import normal
from pimcal.errors import ConfigError, DataError, UsageError
from pimcal_gaussian.backend import Gaussian
from pimcal_gaussian.settings import GaussianSettings

TILES = SimpleNamespace(count=None, rows=None, cols=None)
Z = 4.9  # two-sided level 1e-6


def gaussian(**values: Any) -> Gaussian:
    return Gaussian(GaussianSettings(**values), TILES)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check_moments(sample: Tensor, mean: float, std: float) -> None:
    """`sample`, independent values, has this mean and standard deviation as far as its size can tell."""
    sample = sample.double().flatten()
    n = len(sample)
    centred = sample - sample.mean()
    kurtosis = float((centred**4).mean() / (centred**2).mean() ** 2)
    assert abs(float(sample.mean()) - mean) < Z * std / math.sqrt(n)
    assert abs(float(sample.var()) / std**2 - 1) < Z * math.sqrt((kurtosis - 1) / n)


def product_moments(eta0: float, sigma_t: float, mu_s: float, sigma_s: float) -> tuple[float, float]:
    """Mean and standard deviation of N_T * N_S, two independent normal variables."""
    mean = eta0 * mu_s
    second = (eta0**2 + (sigma_t * eta0) ** 2) * (mu_s**2 + sigma_s**2)
    return mean, math.sqrt(second - mean**2)


@pytest.mark.parametrize("noise", ["mul", "add"])
@pytest.mark.parametrize(
    ("sigma_t", "mu_s", "sigma_s"), [(0.2, 1.0, 0.1), (0.5, 1.0, 0.0), (0.0, 1.0, 0.3), (0.3, -2.0, 0.4)]
)
def test_mul_and_add_have_the_moments_of_the_formula(noise, sigma_t, mu_s, sigma_s):
    device = gaussian(noise=noise, eta0=0.3, sigma_temporal=sigma_t, mu_spatial=mu_s, sigma_spatial=sigma_s)
    weights = randn(300, 400).sign() * 2
    device.program(0, weights)
    device.new_batch()
    error = (device.effective_weights(0) - weights).double()
    check_moments(error / weights if noise == "mul" else error, *product_moments(0.3, sigma_t, mu_s, sigma_s))


@pytest.mark.parametrize("redraw", ["batch", "program"])
def test_awgn_is_normal_with_eta0_in_units_of_the_layers_standard_deviation(redraw):
    device = gaussian(noise="awgn", eta0=0.4, redraw=redraw)
    weights = randn(300, 400)
    device.program(0, weights)
    error = (device.effective_weights(0) - weights).double().flatten()
    assert device.capabilities.weight_unit == "std"
    check_moments(error, 0.0, 0.4)
    n = len(error)
    expected = 0.5 * (1 + torch.special.erf(error.sort().values / (0.4 * math.sqrt(2))))
    distance = (expected - (torch.arange(n, dtype=torch.float64) + 0.5) / n).abs().max()
    assert float(distance) * math.sqrt(n) < 2.7  # Kolmogorov-Smirnov at a level of 1e-6


@pytest.mark.parametrize("noise", ["mul", "add"])
def test_spatial_noise_is_drawn_at_programming_and_temporal_noise_for_every_batch(noise):
    device = gaussian(noise=noise, eta0=0.1, sigma_temporal=0.5, sigma_spatial=0.2)
    weights = torch.full((200, 100), 3.0)
    device.program(0, weights)
    batches = []
    for _ in range(60):
        device.new_batch()
        batches.append((device.effective_weights(0) - weights) / (3.0 if noise == "mul" else 1.0))
    errors = torch.stack(batches).double() / 0.1  # N_T / eta0 * N_S
    spatial = errors.mean(0)
    # What stays over the batches is N_S, up to the mean of 60 temporal draws.
    check_moments(spatial, 1.0, math.sqrt(0.2**2 + (0.5**2 * (1 + 0.2**2)) / 60))
    check_moments((errors[0] - errors[1]), 0.0, math.sqrt(2 * 0.5**2 * (1 + 0.2**2)))


def test_without_temporal_noise_the_weights_change_at_programming_alone():
    device = gaussian(noise="mul", eta0=0.1, sigma_temporal=0.0, sigma_spatial=0.2)
    weights = randn(30, 20)
    device.program(0, weights)
    first = device.effective_weights(0).clone()
    device.new_batch()
    assert torch.equal(device.effective_weights(0), first)
    device.program(0, weights)
    assert not torch.equal(device.effective_weights(0), first)


def test_awgn_drawn_at_programming_stays_until_the_next_programming():
    device = gaussian(noise="awgn", eta0=0.1, redraw="program")
    weights = randn(30, 20)
    device.program(0, weights)
    first = device.effective_weights(0).clone()
    device.new_batch()
    assert torch.equal(device.effective_weights(0), first)
    device.program(0, weights)
    assert not torch.equal(device.effective_weights(0), first)


def levels(device: Gaussian) -> tuple[Tensor, Tensor]:
    """N_T of every weight of two tiles, in one batch."""
    device.new_batch()
    return device.effective_weights(0) - 1, device.effective_weights(1) - 1


@pytest.mark.parametrize("noise", ["mul", "add"])
@pytest.mark.parametrize("sigma_spatial", [0.0, 0.1])
def test_granularity_says_what_shares_one_temporal_draw(noise, sigma_spatial):
    for granularity in ("element", "tile", "device"):
        device = gaussian(noise=noise, eta0=0.1, sigma_spatial=sigma_spatial, granularity=granularity)
        for tile in (0, 1):
            device.program(tile, torch.ones(40, 30))
        (first, second), (later, _) = levels(device), levels(device)
        ratio = later / first  # N_S cancels: only N_T differs between two batches
        assert (float(ratio.std()) < 1e-3) == (granularity != "element")
        assert abs(float(ratio.mean()) - 1) > 1e-3
        if not sigma_spatial:
            same = abs(float(first.mean() - second.mean())) < 1e-6
            assert same == (granularity == "device")


@pytest.mark.parametrize("granularity", ["tile", "device"])
def test_a_shared_level_has_the_temporal_distribution_over_the_batches(granularity):
    device = gaussian(noise="add", eta0=0.1, sigma_temporal=0.3, sigma_spatial=0.0, granularity=granularity)
    device.program(5, torch.zeros(1, 1))
    drawn = []
    for _ in range(3000):
        device.new_batch()
        drawn.append(float(device.effective_weights(5)))
    check_moments(torch.tensor(drawn), 0.1, 0.03)


def test_tiles_batches_and_seeds_have_unrelated_noise():
    draws = []
    for seed, tile, batches in [(0, 0, 1), (0, 1, 1), (0, 0, 2), (1, 0, 1), (0, 1, 0)]:
        device = gaussian(noise="awgn", eta0=1.0, seed=seed)
        device.program(tile, torch.zeros(200, 100))
        for _ in range(batches):
            device.new_batch()
        draws.append(device.effective_weights(tile).flatten())
    correlation = torch.corrcoef(torch.stack(draws))
    correlation.fill_diagonal_(0)
    assert float(correlation.abs().max()) < Z / math.sqrt(200 * 100)


@pytest.mark.parametrize("noise", ["mul", "add", "awgn"])
def test_no_noise_is_exact(noise):
    device = gaussian(noise=noise, eta0=0.0)
    weights = randn(9, 7)
    device.program(0, weights)
    assert torch.equal(device.effective_weights(0), weights)


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations([0, 1, 2]),
    repeats=st.integers(1, 2),
    noise=st.sampled_from(["mul", "add", "awgn"]),
    granularity=st.sampled_from(["element", "tile", "device"]),
    sigma_spatial=st.sampled_from([0.0, 0.1]),
)
def test_a_draw_depends_neither_on_the_order_of_calls_nor_on_other_tiles(
    order, repeats, noise, granularity, sigma_spatial
):
    values = {"noise": noise, "eta0": 0.1, "sigma_spatial": sigma_spatial}
    if noise != "awgn":
        values["granularity"] = granularity
    together, alone = gaussian(**values), gaussian(**values)
    for tile in order:
        together.program(tile, randn(5, 4, seed=tile))
    alone.program(1, randn(5, 4, seed=1))
    for _ in range(2):
        together.new_batch()
        alone.new_batch()
        for _ in range(repeats):
            seen = {tile: together.effective_weights(tile).clone() for tile in order}
        assert torch.equal(seen[1], alone.effective_weights(1))


STEPS = st.one_of(
    st.tuples(st.just("batch"), st.lists(st.integers(0, 3), max_size=8)),
    st.tuples(st.just("program"), st.integers(0, 3)),
    st.tuples(st.just("advance"), st.just(1.0)),
)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=4, max_size=4),
    steps=st.lists(STEPS, max_size=12),
    noise=st.sampled_from(["mul", "add", "awgn"]),
    sigma_spatial=st.sampled_from([0.0, 0.1]),
)
def test_tiles_that_are_drawn_together_have_the_noise_that_each_has_alone(shapes, steps, noise, sigma_spatial):
    values = {"noise": noise, "eta0": 0.1, "drift": {"kind": "linear", "rate_per_s": 0.5}}
    if noise != "awgn":
        values["sigma_spatial"] = sigma_spatial
    together, alone = gaussian(**values), [gaussian(**values) for _ in shapes]
    for device in (together, *alone):
        for tile, shape in enumerate(shapes):
            if device in (together, alone[tile]):
                device.program(tile, randn(*shape, seed=tile))
    every = ("batch", list(range(4)))
    for what, argument in [every, every, every, *steps, every]:
        if what == "program":
            for device in (together, alone[argument]):
                device.program(argument, randn(*shapes[argument], seed=9))
            continue
        for device in (together, *alone):
            device.new_batch() if what == "batch" else device.advance(argument)
        for tile in argument if what == "batch" else range(4):
            assert torch.equal(together.effective_weights(tile), alone[tile].effective_weights(tile))


@pytest.fixture
def of_small_tiles() -> Gaussian:
    """A device of ten small tiles and a large one."""
    device = gaussian(noise="mul", eta0=0.1)
    for tile in range(10):
        device.program(tile, randn(20, 30, seed=tile))
    device.program(10, randn(300, 300))
    return device


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """How many numbers each draw had."""
    counts: list[int] = []

    def counted(parts: list[tuple[int, int]], mean: float, std: float) -> Tensor:
        counts.append(sum(count for _, count in parts))
        return normal(parts, mean, std)

    monkeypatch.setattr("pimcal_gaussian.backend.normal", counted)
    return counts


def batch(device: Gaussian, tiles: range) -> None:
    device.new_batch()
    for tile in tiles:
        device.effective_weights(tile)


@pytest.mark.parametrize("batches", [1, 3])  # alone, and together
def test_functional_derivatives_pass_through_the_device(batches):
    with pimcal.open_device("gaussian_mul") as device:
        net = pimcal.deploy(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), device)
        x = randn(4)
        for _ in range(batches):
            net(x)
        state = device.state_dict()
        found = torch.func.jacrev(net)(x)
        device.load_state_dict(state)
        torch.testing.assert_close(found, torch.autograd.functional.jacobian(net, x))


EACH = [600] * 10


def test_small_tiles_cost_one_draw_where_most_are_read_in_every_batch(of_small_tiles, drawn):
    for _ in range(3):
        batch(of_small_tiles, range(11))
    assert drawn == [*EACH, 90_000, 6_000, 90_000, 6_000, 90_000]


def test_small_tiles_are_drawn_alone_where_few_are_read(of_small_tiles, drawn):
    for tiles in (range(10), range(3), range(3), range(3)):
        batch(of_small_tiles, tiles)
    assert drawn == [*EACH, 6_000, *EACH[:3], *EACH[:3]]


def test_small_tiles_are_drawn_alone_where_they_are_programmed_in_every_batch(of_small_tiles, drawn):
    for _ in range(4):
        batch(of_small_tiles, range(10))
        of_small_tiles.program(3, randn(20, 30))
    assert drawn == EACH * 4


def test_weights_drawn_together_in_inference_mode_can_be_trained_through(of_small_tiles, drawn):
    with torch.inference_mode():
        for _ in range(2):
            batch(of_small_tiles, range(10))
    inputs = randn(2, 20).requires_grad_()
    of_small_tiles.matmul(0, inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, of_small_tiles.effective_weights(0).sum(1).expand(2, 20))
    assert drawn == [*EACH, 6_000]


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 20), cols=st.integers(1, 20), noise=st.sampled_from(["mul", "add", "awgn"]))
def test_products_are_those_of_the_effective_weights(rows, cols, noise):
    device = gaussian(noise=noise, eta0=0.2)
    device.program(0, randn(rows, cols))
    inputs = randn(3, rows, seed=1)
    torch.testing.assert_close(device.matmul(0, inputs), inputs @ device.effective_weights(0))


def test_the_layout_of_the_weights_changes_no_value_and_the_host_needs_no_copy():
    rowwise, columnwise = gaussian(noise="mul", eta0=0.1), gaussian(noise="mul", eta0=0.1)
    weights = randn(18, 6)
    rowwise.program(0, weights)
    columnwise.program(0, weights.t().contiguous().t())
    assert torch.equal(rowwise.effective_weights(0), columnwise.effective_weights(0))
    assert rowwise.effective_weights(0).t().is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_of_the_weights_is_kept(dtype):
    device = gaussian(noise="mul", eta0=0.1)
    device.program(0, randn(5, 4).to(dtype))
    assert device.effective_weights(0).dtype == dtype


def test_weights_programmed_in_inference_mode_can_be_trained_through():
    device = gaussian(noise="mul", eta0=0.1)
    with torch.inference_mode():
        device.program(0, randn(5, 4))
    inputs = randn(2, 5).requires_grad_()
    device.matmul(0, inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, device.effective_weights(0).sum(1).expand(2, 5))


def test_a_restored_device_continues_with_batch_time_and_spatial_noise():
    drift = {"kind": "linear", "rate_per_s": 0.5}
    device = gaussian(noise="mul", eta0=0.1, seed=4, drift=drift)
    device.program(2, randn(5, 4))
    device.program(2, randn(5, 4, seed=1))
    device.new_batch()
    device.advance(3.0)
    other = gaussian(noise="mul", eta0=0.1, seed=99, drift=drift)
    other.load_state_dict(device.state_dict())
    for _ in range(2):
        assert torch.equal(other.effective_weights(2), device.effective_weights(2))
        assert other.telemetry() == device.telemetry()
        for each in (device, other):
            each.new_batch()
            each.advance(1.0)
            each.program(2, randn(5, 4, seed=2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("values", [{}, {"granularity": "tile"}, {"sigma_spatial": 0.0}])
def test_cuda_sees_the_noise_that_the_cpu_sees(values):
    host, moved, born = (gaussian(noise="mul", eta0=0.1, **values) for _ in range(3))
    weights = randn(50, 40)
    host.program(0, weights)
    moved.program(0, weights)
    moved.to(torch.device("cuda"))
    born.program(0, weights.cuda())
    for each in (host, moved, born):
        each.new_batch()
    expected = host.effective_weights(0)
    for each in (moved, born):
        assert each.effective_weights(0).device.type == "cuda"
        torch.testing.assert_close(each.effective_weights(0).cpu(), expected, rtol=1e-6, atol=1e-7)
    moved.to(torch.device("cpu"))
    assert torch.equal(moved.effective_weights(0), expected)


def test_errors_name_the_tile_and_the_limits():
    device = Gaussian(GaussianSettings(noise="mul", eta0=0.1), SimpleNamespace(count=2, rows=8, cols=4))
    with pytest.raises(ConfigError, match=r"gaussian-mul-0 has no tile 2: its tiles are 0 to 1"):
        device.program(2, randn(2, 2))
    with pytest.raises(ConfigError, match=r"9 x 4 do not fit tile 1 .* 8 x 4"):
        device.program(1, randn(9, 4))
    with pytest.raises(DataError, match=r"tile 0: .*\[0, 4\]"):
        device.program(0, torch.empty(0, 4))
    with pytest.raises(DataError, match="tile 0: the weights hold NaN"):
        device.program(0, torch.tensor([[1.0, math.nan]]))
    with pytest.raises(UsageError, match="tile 1 holds no weights"):
        device.effective_weights(1)
    device.program(1, randn(3, 4))
    with pytest.raises(UsageError, match=r"tile 1 .* 3 rows.*\[2, 5\]"):
        device.matmul(1, randn(2, 5))
