"""aihwkit's device models as a backend: seeds, saving and loading, time, limits, and whole networks."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("aihwkit", reason="needs aihwkit: pip install 'pimcal[aihwkit]'")

import pimcal
from pimcal import registry
from pimcal.errors import ConfigError, DataError, UsageError
from pimcal.events import DriftCompensated, Event
from pimcal_aihwkit.backend import Aihwkit
from pimcal_aihwkit.settings import AihwkitSettings

DAY_S = 86_400.0
PERFECT = {"perfect": True}
KINDS = ["none", "pcm", "hermes", "reram", "reram_cmo", "custom"]


def backend(rows: int | None = None, cols: int | None = None, **parts: Any) -> Aihwkit:
    settings = AihwkitSettings.model_validate_json(json.dumps(parts))
    return Aihwkit(settings, SimpleNamespace(count=None, rows=rows, cols=cols))


def random_weights(rows: int = 12, cols: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def random_inputs(count: int = 7, rows: int = 12, seed: int = 1) -> Tensor:
    return torch.randn(count, rows, generator=torch.Generator().manual_seed(seed))


def error(values: Tensor, exact: Tensor) -> float:
    return float((values - exact).norm() / exact.norm())


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def network() -> nn.Sequential:
    """Convolutions of every kind of groups, BatchNorm, and a linear layer."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, groups=2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(48, 4),
    )  # fmt: skip
    model(torch.randn(32, 3, 6, 6))
    return model.eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(3))


# seeds


def products(device: Aihwkit) -> list[Tensor]:
    device.program(0, random_weights())
    device.program(3, random_weights(seed=2))
    found = []
    for seconds in (0.0, 60.0):
        device.advance(seconds)
        device.new_batch()
        found += [device.matmul(tile, random_inputs()) for tile in (0, 3, 0)]
    return found


@pytest.mark.parametrize("tile", ["vectorised", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_everything(kind, tile):
    first, again, other = (products(backend(noise={"kind": kind}, tile=tile, seed=seed)) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_noise_does_not_depend_on_the_order_in_which_tiles_are_used():
    first, second = backend(), backend()
    for device, order in ((first, (0, 1)), (second, (1, 0))):
        for tile in order:
            device.program(tile, random_weights(seed=tile))
        device.advance(60.0)
        device.new_batch()
    forward = [first.matmul(tile, random_inputs()) for tile in (0, 1)]
    backward = [second.matmul(tile, random_inputs()) for tile in (1, 0)]
    assert torch.equal(forward[0], backward[1])
    assert torch.equal(forward[1], backward[0])


def test_each_tile_programming_batch_and_product_has_noise_of_its_own():
    device, weights, inputs = backend(), random_weights(), random_inputs()
    device.program(0, weights)
    device.program(1, weights)
    found = [device.matmul(0, inputs), device.matmul(0, inputs), device.matmul(1, inputs)]
    device.new_batch()
    found.append(device.matmul(0, inputs))
    device.program(0, weights)
    found.append(device.matmul(0, inputs))
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_programming_again_draws_anew():
    device = backend(forward=PERFECT)
    found = []
    for _ in range(3):
        device.program(0, random_weights())
        found.append(device.effective_weights(0).clone())
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("tile", ["vectorised", "torch", "cpp"])
def test_torchs_own_generator_is_left_alone(tile):
    before = torch.get_rng_state()
    device = backend(tile=tile)
    device.program(0, random_weights())
    device.advance(60.0)
    device.new_batch()
    device.matmul(0, random_inputs())
    device.load_state_dict(device.state_dict())
    device.to(torch.device("cpu"))
    device.matmul(0, random_inputs())
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_a_deployed_network_leaves_torchs_own_generator_alone():
    model, x = network(), images()
    with pimcal.open_device("aihwkit_pcm", {"device.drift_compensation": "global"}) as device:
        before = torch.get_rng_state()
        net = pimcal.deploy(model, device)
        net(x)
        device.advance(60.0)
        net(x)
        assert torch.equal(torch.get_rng_state(), before)


# saving and loading


def in_mid_life(**parts: Any) -> Aihwkit:
    """Programmed, aged, programmed again, aged, and some batches into its life."""
    device = backend(**parts)
    device.program(0, random_weights(seed=5))
    device.advance(3600.0)
    device.program(0, random_weights())
    device.program(2, random_weights(seed=6))
    device.advance(60.0)
    for _ in range(3):
        device.new_batch()
    return device


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_continues_exactly_from_a_file(kind):
    device = in_mid_life(noise={"kind": kind}, seed=3)
    other = backend(noise={"kind": kind})
    other.load_state_dict(through_a_file(device.state_dict()))
    assert other.telemetry() == device.telemetry()
    for _ in range(2):
        for tile in (0, 2):
            assert torch.equal(other.matmul(tile, random_inputs()), device.matmul(tile, random_inputs()))
        for each in (device, other):
            each.advance(7.5)
            each.new_batch()
    for each in (device, other):
        each.program(2, random_weights(seed=8))
    assert torch.equal(other.matmul(2, random_inputs()), device.matmul(2, random_inputs()))


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"noise": {"kind": "reram"}}, "ReRam"),
        ({"noise": {"kind": "none"}}, "no noise"),
        ({"mapping": {"weight_scaling": "column"}}, "weight_scaling column"),
    ],
)
def test_a_state_of_another_model_is_refused_and_the_device_stays_as_it_is(parts, named):
    state = in_mid_life(noise={"kind": "pcm"}).state_dict()
    other = in_mid_life(**{"noise": {"kind": "pcm"}, "forward": {"output_noise": 0.0}, **parts})
    before = other.matmul(0, random_inputs())
    with pytest.raises(DataError, match=f"PCMLikeNoiseModel and weight_scaling none, and these have .*{named}"):
        other.load_state_dict(state)
    assert torch.equal(other.matmul(0, random_inputs()), before)


def test_a_device_continues_exactly_from_the_middle_of_a_batch():
    device = in_mid_life()
    device.matmul(0, random_inputs())
    other = backend()
    other.load_state_dict(through_a_file(device.state_dict()))
    assert torch.equal(other.matmul(0, random_inputs()), device.matmul(0, random_inputs()))


def test_a_state_does_not_change_with_the_device_it_was_taken_from():
    device = in_mid_life(forward=PERFECT)
    state, expected = device.state_dict(), device.effective_weights(0).clone()
    device.program(0, random_weights(seed=9))
    device.advance(DAY_S)
    device.effective_weights(0)
    other = backend(forward=PERFECT)
    other.load_state_dict(state)
    assert torch.equal(other.effective_weights(0), expected)


@torch.no_grad()
@pytest.mark.parametrize("compensation", ["none", "global"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_deployed_network_continues_exactly_from_a_file(open_backend, tmp_path, kind, compensation):
    options = {"device.noise.kind": kind, "device.drift_compensation": compensation, "tiles.rows": 16, "tiles.cols": 16}
    model, x = network(), images()
    net = pimcal.deploy(model, open_backend("aihwkit", options))
    net.device.advance(3600.0)
    net(x)
    net(x)
    torch.save(net.state_dict(), tmp_path / "net.pt")

    other = pimcal.deploy(model, open_backend("aihwkit", options))
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))

    for _ in range(2):
        assert torch.equal(other(x), net(x))
        for each in (net, other):
            each.device.advance(60.0)


@torch.no_grad()
def test_a_network_in_turns_on_too_few_tiles_continues_exactly(open_backend, tmp_path):
    options = {"tiles.count": 2, "tiles.rows": 27, "tiles.cols": 12}
    model, x = network(), images()
    net = pimcal.deploy(model, open_backend("aihwkit", options))
    assert net.placement.loads > 1
    net(x)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = pimcal.deploy(model, open_backend("aihwkit", options))
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    for _ in range(2):
        assert torch.equal(other(x), net(x))


@pytest.mark.parametrize("kind", ["pcm", "reram"])
@pytest.mark.parametrize("forward", [PERFECT, {"output_noise": 0.01}])
def test_weights_of_inference_mode_can_be_trained_through(forward, kind):
    device = backend(noise={"kind": kind}, forward=forward)
    with torch.inference_mode():
        device.program(0, random_weights())
        device.matmul(0, random_inputs())
    inputs = random_inputs().requires_grad_()
    device.matmul(0, inputs).sum().backward()
    with torch.inference_mode():
        device.advance(60.0)
        device.matmul(0, random_inputs())
    device.matmul(0, inputs).sum().backward()
    assert inputs.grad is not None


# time


@settings(max_examples=30)
@given(steps=st.lists(st.integers(0, 10_000), min_size=1, max_size=6), kind=st.sampled_from(KINDS))
def test_time_may_pass_in_one_step_or_in_several(steps, kind):
    whole, split = (backend(noise={"kind": kind}, forward=PERFECT) for _ in range(2))
    for device in (whole, split):
        device.advance(100.0)
        device.program(0, random_weights())
    whole.advance(sum(steps))
    for seconds in steps:
        split.advance(seconds)
        split.effective_weights(0)
    assert torch.equal(whole.effective_weights(0), split.effective_weights(0))


@pytest.mark.parametrize("seconds", [0.0, 1.0, 3600.0, 30 * DAY_S])
def test_weights_shrink_as_the_law_of_pcm_says(seconds):
    """g(t) = g(0) * ((t + t_0) / t_0)^-nu for the device of each sign, nu as it was drawn at programming."""
    noise = {"kind": "pcm", "read_noise_scale": 0, "t_0_s": 30}
    device = backend(noise=noise, forward=PERFECT, mapping={"weight_scaling": "column"})
    weights = random_weights(64, 16)
    device.advance(5.0)  # time before the programming does not count
    device.program(0, weights)
    device.advance(seconds)
    held = device.state_dict()["tiles"][0]
    positive, negative = held["drift"]
    nu = torch.where(held["programmed"] > 0, positive, negative)
    expected = (held["programmed"] * ((seconds + 30) / 30) ** -nu * held["scales"][:, None]).t()
    torch.testing.assert_close(device.effective_weights(0), expected, rtol=1e-4, atol=1e-6)
    assert float(nu.min()) >= 0
    assert 0.03 < float(nu.mean()) < 0.12
    torch.testing.assert_close(held["scales"], weights.abs().amax(0))


def test_a_tile_ages_from_its_own_programming():
    device = backend(noise={"kind": "pcm", "read_noise_scale": 0}, forward=PERFECT)
    for tile in (0, 1):
        device.program(tile, random_weights())
        device.advance(DAY_S)
    old, young = (float(device.effective_weights(tile).norm()) for tile in (0, 1))
    assert old < young
    device.program(0, random_weights())
    assert float(device.effective_weights(0).norm()) > young


def test_without_noise_time_changes_nothing():
    device = backend(noise={"kind": "none"}, forward=PERFECT)
    device.program(0, random_weights())
    device.advance(365 * DAY_S)
    torch.testing.assert_close(device.effective_weights(0), random_weights())


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, -math.inf])
def test_time_that_cannot_pass_is_refused_and_nothing_changes(seconds):
    device = backend(forward=PERFECT)
    device.program(0, random_weights())
    before = device.effective_weights(0).clone()
    with pytest.raises(UsageError, match="cannot advance"):
        device.advance(seconds)
    assert device.telemetry() == {"simulated_time_s": 0.0}
    assert torch.equal(device.effective_weights(0), before)


# weights


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_and_the_tile_keeps_what_it_holds(value):
    device = backend(forward=PERFECT)
    device.program(0, random_weights())
    before = device.effective_weights(0).clone()
    wrong = random_weights()
    wrong[3, 2] = value
    with pytest.raises(DataError, match="tile 0: the weights hold NaN or infinite values"):
        device.program(0, wrong)
    assert torch.equal(device.effective_weights(0), before)


def test_a_network_with_a_nan_weight_is_refused(open_backend):
    model = network()
    with torch.no_grad():
        model[0].weight[2, 1, 0, 0] = math.nan
    with pytest.raises(DataError, match="NaN"):
        pimcal.deploy(model, open_backend("aihwkit"))


@pytest.mark.parametrize("scaling", ["none", "tile", "column"])
@pytest.mark.parametrize("omega", [None, 0.4])
def test_scaling_the_weights_changes_no_product_of_an_exact_tile(scaling, omega):
    mapping = {"weight_scaling": scaling} | (
        {} if omega is None or scaling == "none" else {"weight_scaling_omega": omega}
    )
    device = backend(noise={"kind": "none"}, forward=PERFECT, mapping=mapping)
    weights = random_weights() * torch.tensor([1e-3, 1.0, 50.0, 0.0, 1.0])
    device.program(0, weights)
    torch.testing.assert_close(device.effective_weights(0), weights, rtol=1e-5, atol=1e-7)
    assert float(device.state_dict()["tiles"][0]["programmed"].abs().max()) == pytest.approx(
        float(weights.abs().max()) if scaling == "none" else omega or 1.0
    )


def test_a_column_of_zeros_is_no_noisier_than_the_others():
    """It is what an offset column of the references is: its output is subtracted from all others."""
    device = backend(noise={"kind": "pcm"}, mapping={"weight_scaling": "column"})
    weights = 0.05 * random_weights(64, 8)
    weights[:, 0] = 0.0
    device.program(0, weights)
    inputs = random_inputs(4000, 64)
    errors = (device.matmul(0, inputs) - inputs @ weights).std(0)
    assert float(errors[0]) < 1.5 * float(errors[1:].max())


# products


@torch.no_grad()
def test_the_standard_preset_multiplies_as_aihwkits_own_tile_does():
    """Input range, scaling by columns, converters and IR drop; all that is random is off."""
    quiet = {"output_noise": 0.0, "weight_noise": 0.0, "weight_noise_type": "none"}
    device = backend(preset="StandardHWATrainingPreset", noise={"kind": "none"}, forward=quiet)
    weights, inputs = random_weights(64, 16), 1.5 * random_inputs(500, 64)
    device.program(0, weights)
    from aihwkit.simulator import presets
    from aihwkit.simulator.tiles.inference import InferenceTile

    rpu = presets.StandardHWATrainingPreset()
    rpu.forward.out_noise, rpu.forward.w_noise, rpu.drift_compensation = 0.0, 0.0, None
    tile = InferenceTile(16, 64, rpu, bias=False).eval()
    tile.set_weights(weights.t().contiguous(), apply_weight_scaling=True)
    mine, theirs = device.matmul(0, inputs), tile(inputs)
    assert float(((mine - theirs).abs() > 1e-4 * theirs.abs().max()).float().mean()) < 0.005


@pytest.mark.parametrize("tile", ["vectorised", "torch", "cpp"])
def test_all_kinds_of_tiles_multiply_alike(tile):
    """Converters alone: what can be compared without a distribution."""
    parts = {"noise": {"kind": "none"}, "forward": {"output_noise": 0.0}, "mapping": {"weight_scaling": "column"}}
    device, weights, inputs = backend(tile=tile, **parts), random_weights(), random_inputs(300)
    device.program(0, weights)
    assert error(device.matmul(0, inputs), inputs @ weights) < 0.02


@pytest.mark.parametrize("forward", [PERFECT, {"output_noise": 0.0}, {"output_noise": 0.06}])
@pytest.mark.parametrize("tile", ["vectorised", "torch", "cpp"])
def test_products_see_the_weights_of_the_moment(tile, forward):
    """Programming, time and loading a state all reach the tile that multiplies."""
    noise = {"kind": "custom", "programming_noise_scale": 0, "read_noise_scale": 0, "nu_mean": 0.5, "nu_std": 0}
    device, weights, inputs = backend(tile=tile, forward=forward, noise=noise), random_weights(), random_inputs(200)
    device.program(0, weights)
    first = device.state_dict()
    assert error(device.matmul(0, inputs), inputs @ weights) < 0.2
    device.advance(60.0)
    assert error(device.matmul(0, inputs), inputs @ weights / 2) < 0.3
    device.program(0, -weights)
    assert error(device.matmul(0, inputs), -inputs @ weights) < 0.2
    device.load_state_dict(first)
    assert error(device.matmul(0, inputs), inputs @ weights) < 0.2


def test_the_input_range_clips_inputs():
    parts = {"noise": {"kind": "none"}, "forward": {"input_range": 1.0, "output_noise": 0.0}}
    device, weights, inputs = backend(**parts), random_weights(), 2 * random_inputs()
    device.program(0, weights)
    assert error(device.matmul(0, inputs), inputs.clamp(-1, 1) @ weights) < 0.03


# limits


@torch.no_grad()
@pytest.mark.parametrize("rows", [16, 27, 5])
def test_tile_limits_hold_for_convolutions(open_backend, rows):
    model = nn.Sequential(nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Conv2d(20, 6, 3, groups=2)).eval()
    options = {"device.noise.kind": "none", "device.forward.perfect": True, "tiles.rows": rows, "tiles.cols": 8}
    net = pimcal.deploy(model, open_backend("aihwkit", options))
    first, second = (row for row in net.placement.layers if row.on_device)
    assert first.matrix == (1, 108, 20)
    assert first.blocks >= math.ceil(108 / rows) * 3
    assert second.matrix == (2, 90, 3)
    assert second.blocks >= math.ceil(90 / rows) * 2
    held = net.device.backend.state_dict()["tiles"]
    assert all(tile["programmed"].shape[1] <= rows and tile["programmed"].shape[0] <= 8 for tile in held.values())
    x = torch.randn(3, 12, 7, 7)
    torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-4)


def test_weights_larger_than_the_presets_tile_are_refused():
    device = backend(preset="StandardHWATrainingPreset")
    with pytest.raises(ConfigError, match="513 x 2 do not fit"):
        device.program(0, torch.zeros(513, 2))


@torch.no_grad()
def test_a_layer_larger_than_the_presets_tile_is_cut(open_backend):
    model = nn.Linear(1200, 4)
    net = pimcal.deploy(model, open_backend("aihwkit", {"device.preset": "StandardHWATrainingPreset"}))
    assert net.placement.layers[0].blocks == 3
    x = torch.randn(50, 1200)
    assert error(net(x), model(x)) < 0.5


def test_tiles_larger_than_the_presets_are_refused_without_a_profile_too():
    with pytest.raises(ConfigError, match=r"tiles\.rows: StandardHWATrainingPreset models tiles of at most 512 rows"):
        backend(rows=600, preset="StandardHWATrainingPreset")


# networks


@torch.no_grad()
@pytest.mark.parametrize("rows", [None, 16])
def test_every_kind_of_layer_is_exact_on_an_ideal_device(rows):
    model, x = network(), images()
    with pimcal.open_device("aihwkit_ideal", {"tiles.rows": rows}) as device:
        net = pimcal.deploy(model, device)
        assert all(row.on_device for row in net.placement.layers)
        torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 3, groups=4), nn.Conv1d(8, 6, 3, groups=2)]
)
def test_grouped_and_depthwise_convolutions_are_exact_through_products_too(open_backend, layer):
    """Input vectors go to the tiles here; `aihwkit_ideal` hands its weights to torch's own kernels."""
    options = {"device.noise.kind": "none", "device.forward": {"input_bits": 0, "output_bits": 0, "output_noise": 0.0}}
    net = pimcal.deploy(layer, open_backend("aihwkit", {**options, "tiles.rows": 16, "tiles.cols": 16}))
    x = torch.randn(2, 8, *(9,) * (layer.weight.dim() - 2))
    assert not net.device.capabilities.effective_weights
    torch.testing.assert_close(net(x), layer(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("tile", ["torch", "cpp"])
def test_a_network_runs_on_aihwkits_own_tiles(open_backend, tile):
    model, x = network(), images(16)
    options = {"device.noise.kind": "none", "device.tile": tile, "device.forward.output_noise": 0.0}
    net = pimcal.deploy(model, open_backend("aihwkit", {**options, "device.mapping.weight_scaling": "column"}))
    assert error(net(x), model(x)) < 0.1


@torch.no_grad()
def test_both_ways_to_multiply_agree(open_backend):
    """torch's kernels on the effective weights, and a tile that multiplies without converters."""
    model, x = network(), images()
    exact = {"input_bits": 0, "output_bits": 0, "output_noise": 0.0, "bound_management": "none", "output_bound": 0.0}
    outputs = []
    for forward in (PERFECT, exact):
        net = pimcal.deploy(model, open_backend("aihwkit", {"device.forward": forward}))
        net.device.advance(3600.0)
        assert net.device.capabilities.effective_weights == (forward is PERFECT)
        outputs.append(net(x))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_paired_calibration_helps_on_pcm(open_backend):
    model, x = network(), images(256)
    net = pimcal.deploy(model, open_backend("aihwkit"))
    net.device.advance(DAY_S)
    before = error(net(x), model(x))
    net.apply(pimcal.calibrate(net, [images(64)], method="paired"))
    assert error(net(x), model(x)) < 0.8 * before


# drift compensation


class Listener:
    def __init__(self) -> None:
        self.heard: list[DriftCompensated] = []

    @pimcal.hookimpl
    def pimcal_on_event(self, event: Event) -> None:
        if isinstance(event, DriftCompensated):
            self.heard.append(event)


@pytest.fixture
def heard() -> Iterator[list[DriftCompensated]]:
    registry.default.cache_clear()
    listener = Listener()
    registry.register_plugin(listener)
    yield listener.heard
    registry.default.cache_clear()


@torch.no_grad()
@pytest.mark.parametrize("forward", [PERFECT, {"output_noise": 0.01}])
def test_compensation_runs_when_time_has_passed_and_tells_which_tiles(open_backend, heard, forward):
    options = {"device.drift_compensation": "global", "device.forward": forward, "tiles.rows": 16, "tiles.cols": 16}
    net = pimcal.deploy(network(), open_backend("aihwkit", options))
    assert not heard
    net.device.advance(DAY_S)
    [event] = heard
    assert event.identity == net.device.capabilities.identity
    assert event.simulated_time_s == DAY_S
    assert set(event.gains) == {tile for row in net.placement.layers for tile in row.tiles}
    assert all(1.2 < gain < 2.5 for gain in event.gains.values())  # (1 day / 20 s)^0.05 is 1.5


def test_without_being_asked_for_it_does_not_run(open_backend, heard):
    net = pimcal.deploy(network(), open_backend("aihwkit"))
    net.device.advance(DAY_S)
    assert not heard


@torch.no_grad()
def test_compensation_undoes_a_drift_that_all_devices_share(open_backend):
    noise = {"kind": "custom", "programming_noise_scale": 0, "read_noise_scale": 0, "nu_mean": 0.06, "nu_std": 0}
    options = {"device.noise": noise, "device.forward": PERFECT, "device.drift_compensation": "global"}
    model, x = network(), images()
    net = pimcal.deploy(model, open_backend("aihwkit", options))
    net.device.advance(30 * DAY_S)
    torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("preset", [None, "StandardHWATrainingPreset"])
def test_compensation_restores_the_scale_of_the_outputs(open_backend, preset):
    model, x = nn.Linear(128, 32), 0.5 * torch.randn(400, 128)
    scales = {}
    for compensation in ("none", "global"):
        options = {"device.preset": preset, "device.mapping.weight_scaling": "column"}
        options["device.drift_compensation"] = compensation
        net = pimcal.deploy(model, open_backend("aihwkit", options))
        net.device.advance(30 * DAY_S)
        exact = model(x) - model.bias
        scales[compensation] = float(((net(x) - model.bias) * exact).sum() / exact.square().sum())
    assert scales["none"] < 0.65
    assert scales["global"] == pytest.approx(1.0, abs=0.06)
