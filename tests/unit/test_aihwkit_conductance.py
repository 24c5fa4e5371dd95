"""What programming and time do to weights: as in aihwkit's own tile, reproducible, and never NaN.

Both sides of each comparison draw from torch's generator, which is seeded: no run differs from another.
"""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("aihwkit", reason="needs aihwkit: pip install 'pimcal[aihwkit]'")

from pimcal.errors import DataError
from pimcal_aihwkit.conductance import Conductances
from pimcal_aihwkit.config import Setup, build
from pimcal_aihwkit.settings import AihwkitSettings

Z_LEVEL = 5.0
DAY_S = 86_400.0
DEVICES = 3000  # of each level
LEVELS = torch.tensor([-1.0, -0.6, -0.2, -0.05, 0.0, 0.1, 0.4, 1.0])
WEIGHTS = LEVELS[:, None].repeat(1, DEVICES)
DRIFT = {"g_microsiemens": [0, 5, 25], "nu_mean": [0.2, 0.1, 0.05], "nu_std": [0.05, 0.02, 0.01]}

NOISES = {
    "pcm": {"kind": "pcm"},
    "pcm of another range": {"kind": "pcm", "g_max_microsiemens": 10, "programming_coefficients": [0.3, 0.5]},
    "pcm with a drift table": {"kind": "pcm", "drift": DRIFT},
    "hermes": {"kind": "hermes"},
    "hermes with one device": {"kind": "hermes", "devices": 1},
    "custom": {"kind": "custom", "programming_coefficients": [0.2, 0.4], "nu_mean": 0.06, "nu_std": 0.03},
    "reram": {"kind": "reram"},
    "reram_cmo": {"kind": "reram_cmo", "acceptance_range": "2%"},
}


def setup_of(noise: dict[str, Any]) -> Setup:
    return build(AihwkitSettings.model_validate_json(json.dumps({"noise": noise})))


def conductances(noise: dict[str, Any]) -> Conductances:
    model = setup_of(noise).noise
    assert model is not None
    return Conductances(model)


def after(device: Conductances, seconds: float, weights: Tensor = WEIGHTS, key: int = 1) -> Tensor:
    """`weights` programmed with `key`, and left alone for so long."""
    programmed, drift = device.program(weights.clone(), key)
    return device.after(seconds, programmed, drift, key, read_key=99)


@torch.no_grad()
def in_aihwkits_tile(noise: dict[str, Any], seconds: float) -> Tensor:
    """The same on an InferenceTile."""
    setup = setup_of(noise)
    setup.rpu.noise_model = setup.noise
    tile = setup.rpu.tile_class(*WEIGHTS.shape, setup.rpu, bias=False)
    tile.set_weights(WEIGHTS)
    torch.manual_seed(12345)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tile.program_weights()
        if seconds:
            tile.drift_weights(seconds)
    weights, _ = tile.get_weights()
    assert isinstance(weights, Tensor)
    return weights


def assert_the_same_distribution(mine: Tensor, theirs: Tensor) -> None:
    """Means and standard deviations of each row."""
    variance = torch.maximum(mine.var(1), theirs.var(1)) + 1e-14
    share = 1 / mine.shape[1] + 1 / theirs.shape[1]
    assert float(((mine.mean(1) - theirs.mean(1)).abs() / (variance * share).sqrt()).max()) < Z_LEVEL
    fourth = torch.maximum(*((x - x.mean(1, keepdim=True)).pow(4).mean(1) for x in (mine, theirs)))
    kurtosis = fourth / variance.square()
    error = ((kurtosis - 1).clamp(min=1) / 4 * variance * share).sqrt()
    assert float(((mine.std(1) - theirs.std(1)).abs() / error).max()) < Z_LEVEL


@pytest.mark.parametrize("seconds", [0.0, 1.0, DAY_S, 2 * DAY_S])  # those at which ReRAM was measured
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_weights_are_distributed_as_in_aihwkits_own_tile(noise, seconds):
    mine, theirs = after(conductances(noise), seconds), in_aihwkits_tile(noise, seconds)
    if noise["kind"] == "reram":  # aihwkit scales all of them with the largest one that programming happened to leave
        mine, theirs = (weights / weights[LEVELS.abs() == 1].abs().mean() for weights in (mine, theirs))
    assert_the_same_distribution(mine, theirs)


@pytest.mark.parametrize("kind", ["pcm", "hermes", "custom", "reram_cmo"])
def test_a_year_later_they_still_are(kind):
    noise = {"kind": kind}
    assert_the_same_distribution(after(conductances(noise), 365 * DAY_S), in_aihwkits_tile(noise, 365 * DAY_S))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_programming_noise_of_pcm_is_the_published_polynomial(scale):
    """A weight is the difference of two devices; that of the other sign is meant to be 0, and cannot fall below."""
    programmed, _ = conductances({"kind": "pcm", "programming_noise_scale": scale}).program(WEIGHTS.clone(), 3)
    at_zero = scale * 0.26348 / 25.0
    for level, values in zip(LEVELS.abs().tolist(), programmed * LEVELS.sign()[:, None], strict=True):
        if level >= 0.4:  # the smaller ones end at zero themselves
            variance = (scale * (0.26348 + 1.9650 * level - 1.1731 * level**2) / 25.0) ** 2
            variance += at_zero**2 * (1 / 2 - 1 / (2 * math.pi))
            std, mean = math.sqrt(variance), level - at_zero / math.sqrt(2 * math.pi)
            assert float(values.std()) == pytest.approx(std, rel=Z_LEVEL / math.sqrt(2 * DEVICES), abs=1e-6)
            assert float(values.mean()) == pytest.approx(mean, abs=Z_LEVEL * std / math.sqrt(DEVICES) + 1e-6)


def test_without_noise_only_drift_is_left_and_follows_the_power_law():
    noise = {"kind": "custom", "programming_noise_scale": 0, "read_noise_scale": 0, "nu_mean": 0.06, "nu_std": 0}
    for seconds in (0.0, 10.0, DAY_S):
        expected = WEIGHTS * ((seconds + 20.0) / 20.0) ** -0.06
        torch.testing.assert_close(after(conductances(noise), seconds), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["pcm", "hermes", "custom", "reram"])
def test_nothing_jumps_when_time_begins_to_pass(kind):
    """But for read noise, which is another one at each moment."""
    device = conductances({"kind": kind} if kind == "reram" else {"kind": kind, "read_noise_scale": 0})
    torch.testing.assert_close(after(device, 1e-3), after(device, 0.0), rtol=1e-3, atol=1e-4)


# ReRAM between its measured times


@pytest.mark.parametrize("seconds", [0.3, 1.0, 40.0, 3600.0, DAY_S / 1.00005, DAY_S, 1.7 * DAY_S, 2 * DAY_S, 1e9])
def test_reram_has_no_jumps(seconds):
    device = conductances({"kind": "reram"})
    before, later = after(device, seconds), after(device, 1.0001 * seconds)
    assert float((later - before).abs().max()) < 1e-4


@pytest.mark.parametrize("seconds", [60.0, 3600.0, DAY_S, 30 * DAY_S])
def test_a_reram_device_keeps_its_place_in_the_spread(seconds):
    device = conductances({"kind": "reram"})
    first, later = after(device, 1.0), after(device, seconds)
    for level in (0, 7):  # where few conductances end at zero
        assert float(torch.corrcoef(torch.stack([first[level], later[level]]))[0, 1]) > 0.95


def test_the_spread_of_reram_lies_between_those_of_the_measured_times():
    device = conductances({"kind": "reram"})
    early, between, late = (after(device, seconds)[6].std() for seconds in (1.0, 3600.0, DAY_S))
    assert early < between < late


def test_reram_stays_as_it_is_after_the_last_measured_time():
    device = conductances({"kind": "reram"})
    assert torch.equal(after(device, 2 * DAY_S), after(device, 365 * DAY_S))


# keys


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_keys_alone_decide_the_noise(noise):
    device = conductances(noise)
    programmed, drift = device.program(WEIGHTS.clone(), 1)
    before = torch.get_rng_state()
    first = device.after(DAY_S, programmed, drift, 1, read_key=5)
    again = device.after(DAY_S, programmed, drift, 1, read_key=5)
    other, _ = device.program(WEIGHTS.clone(), 2)
    assert torch.equal(device.program(WEIGHTS.clone(), 1)[0], programmed)
    assert torch.equal(first, again)
    assert not torch.equal(other, programmed)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_what_was_programmed_and_its_coefficients_are_left_as_they_were(noise):
    device = conductances(noise)
    weights = WEIGHTS.clone()
    programmed, drift = device.program(weights, 1)
    before = [programmed.clone(), *(part.clone() for part in drift if part is not None)]
    device.after(DAY_S, programmed, drift, 1, read_key=5)
    assert torch.equal(weights, WEIGHTS)
    assert all(torch.equal(a, b) for a, b in zip([programmed, *drift], before, strict=True))


def test_read_noise_is_drawn_anew_and_drift_is_not():
    device = conductances({"kind": "pcm"})
    programmed, drift = device.program(WEIGHTS.clone(), 1)
    first, other = (device.after(DAY_S, programmed, drift, 1, read_key=key) for key in (5, 6))
    level = 7  # the largest weights: read noise of some 1.5 %, drift coefficients spread by 8 % to 30 %
    assert not torch.equal(first[level], other[level])
    assert float(torch.corrcoef(torch.stack([first[level], other[level]]))[0, 1]) > 0.5


# what must not become NaN

PATTERNS = {
    "random": torch.linspace(-1, 1, 20).view(4, 5),
    "equal": torch.full((3, 4), 0.5),
    "a single cell": torch.ones(1, 1),
    "zeros": torch.zeros(3, 4),
}
EXTREMES = {**NOISES, "reram_cmo almost without offset": {"kind": "reram_cmo", "g_min_microsiemens": 5.0}}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", EXTREMES)
def test_weights_stay_numbers_whatever_they_are(name, pattern):
    device, weights = conductances(EXTREMES[name]), PATTERNS[pattern]
    if name.startswith("reram_cmo") and pattern != "random":
        with pytest.raises(DataError, match="all weights of the tile are equal"):
            device.program(weights.clone(), 1)
        return
    for seconds in (0.0, 1.0, 3600.0, 365 * DAY_S):
        assert after(device, seconds, weights).isfinite().all()


@pytest.mark.parametrize("seconds", [1e-9, 1e-6, 1e-3, 1.0, 1e12])
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_weights_stay_numbers_however_much_time_has_passed(noise, seconds):
    assert after(conductances(noise), seconds).isfinite().all()
