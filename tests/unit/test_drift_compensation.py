"""Global drift compensation: what its gains are, when they are measured, and that both product paths have them."""

from __future__ import annotations

import io
import itertools
import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pimcal
from pimcal import registry
from pimcal.backend import Capabilities
from pimcal.device import Device
from pimcal.drift_compensation import gain_of, mean_magnitude, one_hot_inputs
from pimcal.errors import DataError, DeviceUnavailableError, UsageError
from pimcal.events import DriftCompensated, Event
from pimcal.ideal import Ideal

LINEAR = {"kind": "linear", "rate_per_s": 0.01}


class Fading(Ideal):
    """Every product shrinks with time as (1 + t)^-(0.1 + tile / 100): no other error."""

    def __init__(self, settings: Any, tiles: Any, /, **changed: Any) -> None:
        super().__init__(settings, tiles)
        self.changed = {"simulated_clock": True, "effective_weights": False, **changed}
        self.time_s = 0.0
        self.asked: list[Tensor] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(identity="fading", **self.changed)

    def advance(self, seconds: float) -> None:
        self.time_s += seconds

    def telemetry(self) -> dict[str, float]:
        return {"simulated_time_s": self.time_s}

    def factor(self, tile: int) -> float:
        return float((1 + self.time_s) ** -(0.1 + tile / 100))

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        self.asked.append(inputs)
        return super().matmul(tile, inputs)  # which multiplies by the effective weights

    def effective_weights(self, tile: int) -> Tensor:
        return super().effective_weights(tile) * self.factor(tile)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "time_s": self.time_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert set(state) == {"tiles", "time_s"}, "a backend gets back what it gave"
        super().load_state_dict(state)
        self.time_s = state["time_s"]


class Chip(Fading):
    """A real device: it keeps its own state."""

    def state_dict(self) -> dict[str, Any]:
        return {}


def fading(kind: type[Fading] = Fading, **changed: Any) -> Device:
    profile = pimcal.load_profile("ideal")
    return Device(kind(profile.settings, profile.tiles, **changed), profile, itertools.count().__next__)


def gaussian(**overrides: Any) -> Device:
    settings = {"eta0": 0.2, "sigma_temporal": 0.0, "sigma_spatial": 0.3, "drift": LINEAR, **overrides}
    return pimcal.open_device("gaussian_mul", {f"device.{key}": value for key, value in settings.items()})


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3))


class Listener:
    def __init__(self) -> None:
        self.heard: list[Event] = []

    @pimcal.hookimpl
    def pimcal_on_event(self, event: Event) -> None:
        self.heard.append(event)


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    """All events; the listener is forgotten after the test."""
    registry.default.cache_clear()
    listener = Listener()
    registry.register_plugin(listener)
    yield listener.heard
    registry.default.cache_clear()


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# what a gain is made of


@given(rows=st.integers(1, 700), value=st.integers(1, 255))
def test_one_hot_inputs_are_the_unit_matrix_in_parts(rows: int, value: int) -> None:
    parts = list(one_hot_inputs(rows, value, torch.device("cpu")))
    assert torch.equal(torch.cat(parts), value * torch.eye(rows))
    assert max(map(len, parts)) <= 256


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_mean_magnitude_weighs_every_element_alike(sizes: list[int]) -> None:
    parts = [torch.randn(size, 3) for size in sizes]
    assert mean_magnitude(parts) == pytest.approx(float(torch.cat(parts).abs().mean()))


@pytest.mark.parametrize(("baseline", "now"), [(0.0, 0.0), (0.0, 0.5), (0.5, 0.0)])
def test_a_readout_of_zero_leaves_a_gain_of_1(baseline: float, now: float) -> None:
    assert gain_of(3, baseline, now) == 1.0


@pytest.mark.parametrize(("baseline", "now"), [(math.nan, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_readout_that_is_no_number_is_an_error_that_names_the_tile(baseline: float, now: float) -> None:
    with pytest.raises(DataError, match=r"tile 3 answered .* its drift cannot be compensated; check the device"):
        gain_of(3, baseline, now)


# on a device


def test_gains_of_multiplicative_noise_under_linear_drift_are_the_ratio_of_readouts() -> None:
    with gaussian() as device:
        for tile in (0, 4):
            device.program(tile, torch.randn(30, 7))
        device.watch_drift()
        before = {tile: device.backend.matmul(tile, torch.eye(30)).abs().mean() for tile in (0, 4)}
        device.advance(500.0)
        now = {tile: device.backend.matmul(tile, torch.eye(30)).abs().mean() for tile in (0, 4)}
        gains = device.compensate_drift()
        assert gains == pytest.approx({tile: float(before[tile] / now[tile]) for tile in (0, 4)})
        assert all(0.3 < gain < 0.7 for gain in gains.values())  # eta0 went from 0.2 to 1.2


def test_drift_that_is_the_same_everywhere_is_undone_exactly() -> None:
    with gaussian(sigma_spatial=0.0) as device:
        weights = torch.randn(40, 6)
        device.program(0, weights)
        device.watch_drift()
        device.advance(100.0)
        assert device.compensate_drift() == pytest.approx({0: 1.2 / 1.4})
        torch.testing.assert_close(device.effective_weights(0), 1.2 * weights)


@pytest.mark.parametrize("effective", [True, False])
def test_both_product_paths_have_the_gain_and_agree(effective: bool) -> None:
    device = fading(effective_weights=effective)
    weights, inputs = torch.randn(5, 3), torch.randn(8, 5)
    device.program(2, weights)
    device.watch_drift()
    device.advance(99.0)
    assert device.compensate_drift() == pytest.approx({2: 100**0.12})
    torch.testing.assert_close(device.matmul(2, inputs), inputs @ weights)
    if effective:
        torch.testing.assert_close(device.effective_weights(2), weights)
        torch.testing.assert_close(inputs @ device.effective_weights(2), device.matmul(2, inputs))


def test_tiles_have_gains_of_their_own_and_those_without_one_are_left_alone() -> None:
    device = fading()
    weights = torch.ones(2, 2)
    for tile in (0, 10):
        device.program(tile, weights)
    device.watch_drift()
    device.advance(9.0)
    assert device.compensate_drift() == pytest.approx({0: 10**0.1, 10: 10**0.2})
    device.clear_drift_compensation()
    for tile in (0, 10):
        assert torch.equal(device.matmul(tile, torch.eye(2)), device.backend.matmul(tile, torch.eye(2)))


def test_a_second_compensation_measures_without_the_present_gain() -> None:
    device = fading()
    device.program(0, torch.randn(4, 4))
    device.watch_drift()
    for time_s in (9.0, 99.0, 999.0):
        device.advance(time_s - device.backend.time_s)  # type: ignore[attr-defined]
        assert device.compensate_drift() == pytest.approx({0: (1 + time_s) ** 0.1})


def test_the_backends_own_weights_are_not_changed_by_a_gain() -> None:
    device = pimcal.open_device("ideal")
    device.program(0, torch.ones(2, 2))
    device.watch_drift()
    device._drift.gains = {0: 3.0}
    assert torch.equal(device.effective_weights(0), torch.full((2, 2), 3.0))
    assert torch.equal(device.backend.effective_weights(0), torch.ones(2, 2))


@pytest.mark.parametrize(("signed", "largest"), [(True, 7), (False, 15)])
def test_devices_that_take_codes_are_driven_with_the_largest(signed: bool, largest: int) -> None:
    device = fading(input_bits=4, signed_inputs=signed)
    device.program(0, torch.randn(300, 2))
    device.watch_drift()
    asked = torch.cat(device.backend.asked)  # type: ignore[attr-defined]
    assert torch.equal(asked, largest * torch.eye(300))
    device.advance(9.0)
    assert device.compensate_drift() == pytest.approx({0: 10**0.1})


def test_readouts_are_counted_as_products_bytes_and_seconds() -> None:
    device = fading(input_bits=8, output_bits=8)
    device.program(0, torch.randn(30, 5))
    before = device.cost.copy()
    device.watch_drift()
    cost = device.cost.since(before)
    assert (cost.mvms, cost.link_bytes, cost.seconds) == (30, 30 * 30 + 30 * 5, 1.0)  # the clock counts its readings
    with device.batch():  # programming within a batch does not count its time twice: four readings, three apart
        device.program(1, torch.randn(10, 5))
    assert device.cost.since(before).seconds == 1.0 + 3.0
    assert device.compensate_drift().keys() == {0, 1}
    assert device.cost.since(before).mvms == 30 + 10 + 40


def test_nothing_is_measured_on_a_device_that_nobody_watches() -> None:
    device = fading()
    device.program(0, torch.randn(3, 2))
    device.advance(5.0)
    assert device.backend.asked == []  # type: ignore[attr-defined]
    assert device.cost.mvms == 0


def test_a_watched_device_measures_what_is_programmed_later_and_nothing_twice() -> None:
    device = fading()
    device.program(0, torch.randn(3, 2))
    device.watch_drift()
    device.advance(9.0)
    device.program(1, torch.randn(4, 2))
    device.watch_drift()
    assert device.cost.mvms == 3 + 4
    device.advance(90.0)
    # tile 1 was programmed at 9 s, which the gain must start from
    assert device.compensate_drift() == pytest.approx({0: 100**0.1, 1: (100 / 10) ** 0.11})


def test_a_tile_that_is_programmed_anew_loses_its_gain_and_is_measured_again() -> None:
    device = fading()
    for tile in (0, 1):
        device.program(tile, torch.randn(3, 2))
    device.watch_drift()
    device.advance(9.0)
    device.compensate_drift()
    weights = torch.randn(6, 4)
    device.program(0, weights)
    torch.testing.assert_close(device.matmul(0, torch.eye(6)), weights * 10**-0.1)
    assert float(device.matmul(1, torch.eye(3)).abs().sum()) > float(device.backend.matmul(1, torch.eye(3)).abs().sum())
    device.advance(90.0)
    assert device.compensate_drift() == pytest.approx({0: 10**0.1, 1: 100**0.11})


def test_programming_that_failed_leaves_gains_as_they_were() -> None:
    device = fading()
    device.program(0, torch.ones(3, 2))
    device.watch_drift()
    device.advance(9.0)
    device.compensate_drift()
    with pytest.raises(DataError, match="NaN"):
        device.program(0, torch.full((3, 2), math.nan))
    torch.testing.assert_close(device.matmul(0, torch.eye(3)), torch.ones(3, 2))


def test_a_profile_that_asks_for_it_is_compensated_whenever_time_has_passed(heard: list[Event]) -> None:
    device = fading(drift_compensation=True)
    device.advance(1.0)
    assert heard == []  # nothing is programmed yet
    weights = torch.randn(5, 2)
    device.program(0, weights)
    after_programming = device.matmul(0, torch.eye(5))
    for seconds in (9.0, 9990.0):
        device.advance(seconds)
        torch.testing.assert_close(device.matmul(0, torch.eye(5)), after_programming)
    assert [type(event) for event in heard] == [DriftCompensated] * 2


def test_an_event_tells_that_it_ran_on_which_tiles_and_when(heard: list[Event]) -> None:
    device = fading()
    for tile in (0, 7):
        device.program(tile, torch.randn(4, 2))
    device.watch_drift()
    device.advance(3.0)
    gains = device.compensate_drift()
    assert heard == [DriftCompensated("fading", gains, 3.0)]
    assert set(gains) == {0, 7}


def test_without_a_simulated_time_the_event_has_none(heard: list[Event]) -> None:
    with pimcal.open_device("ideal") as device:
        device.program(0, torch.ones(2, 2))
        device.watch_drift()
        device.compensate_drift()
    assert heard == [DriftCompensated("ideal", {0: 1.0}, None)]


def test_tiles_that_were_not_measured_when_programmed_are_refused_by_name() -> None:
    device = fading()
    device.program(3, torch.ones(2, 2))
    with pytest.raises(UsageError, match=r"tiles 3 were not measured .* call watch_drift\(\) right after deploying"):
        device.compensate_drift()


def test_a_tile_of_zeros_is_left_alone_and_one_that_went_dead_is_told(caplog: pytest.LogCaptureFixture) -> None:
    device = fading()
    device.program(0, torch.zeros(2, 2))
    device.program(1, torch.ones(2, 2))
    device.watch_drift()
    device.backend.program(1, torch.zeros(2, 2))  # behind the device's back
    with caplog.at_level(logging.WARNING):
        assert device.compensate_drift() == {0: 1.0, 1: 1.0}
    assert [record.getMessage() for record in caplog.records] == [
        "tile 1 answers nothing but zeros now: its drift is not compensated"
    ]


def test_a_compensation_that_fails_changes_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    device = fading()
    for tile in (0, 1):
        device.program(tile, torch.ones(2, 2))
    device.watch_drift()
    device.advance(9.0)
    device.compensate_drift()
    device.advance(90.0)
    compensated = [device.matmul(tile, torch.eye(2)) for tile in (0, 1)]
    broken = device.backend.factor  # type: ignore[attr-defined]

    def fail(tile: int) -> float:
        if tile == 1:
            raise OSError("no answer")
        return broken(tile)

    monkeypatch.setattr(device.backend, "factor", fail)
    with pytest.raises(DeviceUnavailableError, match="no answer"):
        device.compensate_drift()
    monkeypatch.undo()
    assert all(torch.equal(device.matmul(tile, torch.eye(2)), compensated[tile]) for tile in (0, 1))


def test_a_closed_device_is_not_measured() -> None:
    device = fading()
    device.close()
    for call in (device.watch_drift, device.compensate_drift):
        with pytest.raises(DeviceUnavailableError, match="closed"):
            call()


# state


def test_gains_and_baselines_are_saved_and_loaded() -> None:
    device = fading()
    device.program(0, torch.randn(3, 2))
    device.watch_drift()
    device.advance(9.0)
    device.compensate_drift()
    expected = device.matmul(0, torch.eye(3))

    other = fading()
    other.program(5, torch.randn(3, 2))
    other.load_state_dict(through_a_file(device.state_dict()))
    assert torch.equal(other.matmul(0, torch.eye(3)), expected)
    for each in (device, other):
        each.advance(90.0)
        assert each.compensate_drift() == pytest.approx({0: 100**0.1})
        each.program(1, torch.randn(2, 2))  # it goes on watching
        assert set(each.compensate_drift()) == {0, 1}


def test_a_state_from_before_a_compensation_brings_its_gains_back() -> None:
    device = fading()
    device.program(0, torch.randn(3, 2))
    device.watch_drift()
    device.advance(9.0)
    before, state = device.matmul(0, torch.eye(3)), device.state_dict()
    device.compensate_drift()
    device.load_state_dict(state)
    assert torch.equal(device.matmul(0, torch.eye(3)), before)


def test_a_real_device_has_no_state_to_save_and_keeps_its_gains() -> None:
    device = fading(Chip)
    net = pimcal.deploy(cnn(), device)
    device.watch_drift()
    device.advance(9.0)
    device.compensate_drift()
    assert device.state_dict() == {}
    x = torch.randn(2, 2, 6, 6)
    before = net(x)
    net.load_state_dict(through_a_file(net.state_dict()))
    assert torch.equal(net(x), before)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tiles.count": 1, "tiles.rows": 36, "tiles.cols": 6},
        {"tiles.count": 2, "tiles.rows": 9, "tiles.cols": 3},
    ],
)
def test_a_deployed_network_is_restored_with_its_compensation(options: dict[str, Any]) -> None:
    model, x = cnn().eval(), torch.randn(4, 2, 6, 6)
    noise = {"device.drift": LINEAR, "device.eta0": 0.3, **options}
    with pimcal.open_device("gaussian_mul", noise) as device:
        net = pimcal.deploy(model, device)
        device.watch_drift()
        device.advance(300.0)
        device.compensate_drift()
        net(x)
        state = through_a_file(net.state_dict())
        expected = [net(x) for _ in range(2)]
    with pimcal.open_device("gaussian_mul", noise) as device:
        net = pimcal.deploy(model, device)
        net.load_state_dict(state)
        for y in expected:
            assert torch.equal(net(x), y)


@torch.no_grad()
def test_a_network_is_brought_back_on_both_paths_with_grouped_convolutions_and_packed_tiles() -> None:
    model, x = cnn().eval(), torch.randn(4, 2, 6, 6)
    for effective, tiles in itertools.product((True, False), ({}, {"tiles.rows": 12, "tiles.cols": 8})):
        profile = pimcal.load_profile("ideal", tiles)
        backend = Fading(
            profile.settings,
            profile.tiles,
            effective_weights=effective,
            rows=profile.tiles.rows,
            cols=profile.tiles.cols,
        )
        device = Device(backend, profile)
        net = pimcal.deploy(model, device)
        device.watch_drift()
        device.advance(999.0)
        assert not torch.allclose(net(x), model(x), atol=1e-2)
        device.compensate_drift()
        torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-5)


class Ageing(Fading):
    """A tile fades from when it was programmed."""

    def __init__(self, settings: Any, tiles: Any, /, **changed: Any) -> None:
        super().__init__(settings, tiles, **changed)
        self.programmed_s: dict[int, float] = {}

    def program(self, tile: int, weights: Tensor) -> None:
        super().program(tile, weights)
        self.programmed_s[tile] = self.time_s

    def factor(self, tile: int) -> float:
        return float((1 + self.time_s - self.programmed_s[tile]) ** -0.1)


@torch.no_grad()
@pytest.mark.parametrize("effective", [True, False])
def test_a_streamed_network_has_gains_for_what_has_aged_and_none_for_what_is_fresh(effective: bool) -> None:
    model, x = cnn().eval(), torch.randn(4, 2, 6, 6)
    profile = pimcal.load_profile("ideal")
    backend = Ageing(profile.settings, profile.tiles, effective_weights=effective, tiles=3, rows=9, cols=3)
    device = Device(backend, profile)
    net = pimcal.deploy(model, device)
    assert net.placement.loads > 1
    device.watch_drift()
    for _ in range(2):
        device.advance(999.0)
        device.compensate_drift()
        torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-5)
