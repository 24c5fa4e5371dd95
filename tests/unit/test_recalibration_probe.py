"""The probe on real devices: drift is found, temporal noise is not taken for it, dead tiles are named."""

from __future__ import annotations

import io
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pimcal
from pimcal.backend import Capabilities
from pimcal.calibration.estimate import estimate
from pimcal.errors import DeviceUnavailableError
from pimcal.recalibration.golden import ask, golden_inputs, golden_vectors, products
from pimcal.recalibration.probe import Accepted, ProbeSettings, accept, probe, products_of

from .recalibration_devices import REFUSED, images, network, on_faulty, on_gaussian

KINDS_OF_NOISE = [(noise, granularity) for noise in ("mul", "add") for granularity in ("element", "tile", "device")]


# golden vectors


@given(
    rows=st.integers(1, 600),
    key=st.integers(0, 2**63),
    bits=st.sampled_from([None, 2, 8]),
    signed=st.booleans(),
    readable=st.sampled_from([None, 1, 12]),
)
def test_golden_vectors_are_codes_of_the_device_and_none_is_silent(
    rows: int, key: int, bits: int | None, signed: bool, readable: int | None
) -> None:
    device = Capabilities(identity="x", input_bits=bits, signed_inputs=signed, readable_rows=readable)
    realistic, full = vectors = golden_vectors(key, rows, device)
    top = 1 if bits is None else 2 ** (bits - signed) - 1
    assert float(vectors.min()) >= 0
    assert float(full.max()) == top
    assert float(realistic.max()) <= top
    assert int((full > 0).sum()) <= (readable or rows)
    assert bits is None or torch.equal(vectors, vectors.round())
    assert bool(realistic.any()) or bits == 2  # a third of full scale may be no code at all


def test_golden_vectors_belong_to_the_model_and_the_tile() -> None:
    with on_gaussian() as net, on_gaussian("add") as same:
        inputs = golden_inputs(net)
        assert all(torch.equal(vectors, inputs[spot]) for spot, vectors in golden_inputs(same).items())
        assert len({tuple(vectors.flatten().tolist()) for vectors in inputs.values()}) == len(inputs) == 3


# cost


def test_a_probe_takes_the_products_that_it_announced_and_they_are_counted() -> None:
    with on_gaussian() as net:
        accepted, before = accept(net), net.device.cost.copy()
        look = probe(net, accepted)
        assert look.mvms == net.device.cost.since(before).mvms == products_of(net, ProbeSettings().draws) == 3 * 4 * 2


def test_a_probe_of_the_demo_network_takes_less_than_one_percent_of_a_calibration() -> None:
    from pimcal_demo.network import load_network

    with pimcal.open_device("gaussian_mul") as device:
        net = pimcal.deploy(load_network(), device)
        share = products_of(net, ProbeSettings().draws) / estimate(net, torch.zeros(2, 1, 8, 8), 64, "paired").mvms
    assert share < 0.005


def test_no_two_questions_share_temporal_noise() -> None:
    with on_gaussian(granularity="device", sigma_spatial=0.0) as net:
        inputs = golden_inputs(net)
        exact = {spot: answers.mean(0) for spot, answers in ask_without_noise().items()}
        gains = {
            float((answer[draw, 0] @ exact[spot][0] / exact[spot][0].square().sum()).mul(1e6).round())
            for spot, answer in ask(net, inputs, 5).items()
            for draw in range(5)
        }
    assert len(gains) == 15


def ask_without_noise() -> dict[tuple[int, int], torch.Tensor]:
    with on_gaussian(eta0=0.0) as net:
        return {spot: answer for spot, answer in ask(net, golden_inputs(net), 1).items() if not isinstance(answer, str)}


# noise and drift


@pytest.mark.parametrize(("noise", "granularity"), KINDS_OF_NOISE)
def test_temporal_noise_is_no_drift(noise: str, granularity: str) -> None:
    found = 0
    for seed in range(4):
        with on_gaussian(noise, granularity=granularity, seed=seed) as net:
            accepted = accept(net)
            found += sum(probe(net, accepted).drifted for _ in range(50))
    assert found <= 1  # of 200; one in 2,000 is allowed


@pytest.mark.parametrize("redraw", ["batch", "program"])
def test_white_noise_is_no_drift(redraw: str) -> None:
    with on_gaussian("awgn", redraw=redraw) as net:
        accepted = accept(net)
        assert sum(probe(net, accepted).drifted for _ in range(100)) <= 1


@pytest.mark.parametrize(("noise", "granularity"), KINDS_OF_NOISE)
def test_drift_is_noticed_and_named(noise: str, granularity: str) -> None:
    kind = {"mul": "gain", "add": "offset"}[noise]
    settings = {"mul": {}, "add": {"eta0": 0.01}}[noise]
    noticed = 0
    for seed in range(10):
        with on_gaussian(noise, granularity=granularity, seed=seed, **settings) as net:
            accepted = accept(net)
            net.device.advance(0.8)
            looks = [probe(net, accepted) for _ in range(5)]
            noticed += sum(kind in look.everywhere for look in looks)
    assert noticed >= 49


def test_noise_that_grows_is_noticed_though_no_mean_changes() -> None:
    looks = []
    for seed in range(8):
        with on_gaussian("awgn", seed=seed) as net:
            accepted = accept(net)
            net.device.advance(1.0)
            looks.append(probe(net, accepted))
    assert all("noise" in look.everywhere for look in looks)
    assert not any({"gain", "offset"} & {*look.everywhere} for look in looks)
    # From 0.2 to 0.4 of the weights; how much of that the few golden vectors see differs between devices.
    assert statistics.mean(look.effects["noise"] for look in looks) == pytest.approx(0.2 * 3**0.5, rel=0.35)


def test_cells_that_drift_apart_are_a_change_of_shape() -> None:
    looks = []
    for seed in range(8):
        with on_gaussian("awgn", redraw="program", eta0=0.1, seed=seed) as net:
            accepted = accept(net)
            net.device.advance(3.0)
            looks.append(probe(net, accepted))
    assert all("shape" in look.everywhere for look in looks)
    # From 0.1 to 0.4 of the weights; how much of that the few golden vectors see differs between devices.
    assert statistics.mean(look.effects["shape"] for look in looks) == pytest.approx(0.3, rel=0.35)
    assert all(look.effects["noise"] < 0.01 for look in looks)


def test_a_change_too_small_to_cost_anything_is_no_drift_however_sure() -> None:
    net, backend = on_faulty()
    accepted = accept(net)
    backend.factors = dict.fromkeys(range(3), 1.01)
    look = probe(net, accepted)
    assert not look.drifted
    assert look.effects["gain"] == pytest.approx(0.01, rel=0.1)
    assert look.error == 0
    backend.factors = dict.fromkeys(range(3), 1.03)
    assert probe(net, accepted).error == pytest.approx(0.03, rel=0.1)
    backend.factors = dict.fromkeys(range(3), 1.05)
    assert probe(net, accepted).everywhere == ("gain",)


def test_one_tile_that_drifts_is_found_among_the_others() -> None:
    net, backend = on_faulty()
    accepted = accept(net)
    backend.factors[1] = 0.9
    look = probe(net, accepted)
    assert look.of_state("drifted") == ((0, 1),)
    assert look.tiles[0, 1].effects["gain"] == pytest.approx(-0.1, abs=1e-4)
    assert "tiles 1 drifted" in look.reason


def test_reference_columns_hide_from_the_probe_what_they_hide_from_the_network() -> None:
    overrides = {"device.drift": {"kind": "linear", "rate_per_s": 1.0}, "device.sigma_spatial": 0.0}
    references = {"references.offset": 1, "references.gain": 1}
    for extra, expected in (({}, True), (references, False)):
        with pimcal.open_device("gaussian_mul", overrides | extra) as device:
            net = pimcal.deploy(network(), device)
            accepted = accept(net)
            device.advance(1.0)
            assert probe(net, accepted).drifted is expected


# tiles that fail


@pytest.mark.parametrize(("factor", "reason"), [(0.0, "nothing to do with"), (float("nan"), "NaN")])
def test_a_tile_that_dies_is_named_and_is_not_taken_for_drift_of_others(factor: float, reason: str) -> None:
    net, backend = on_faulty()
    accepted = accept(net)
    backend.factors[2] = factor
    look = probe(net, accepted)
    assert look.of_state("dead") == ((0, 2),)
    assert reason in look.tiles[0, 2].reason
    assert look.of_state("good") == ((0, 0), (0, 1))
    assert not look.drifted


def test_a_tile_that_refuses_is_dead_and_is_asked_once_only() -> None:
    net, backend = on_faulty()
    accepted = accept(net)
    backend.failing[1] = REFUSED
    look = probe(net, accepted)
    assert look.tiles[0, 1].reason == str(REFUSED)
    assert look.mvms == 2 * 2 * 4


def test_a_tile_that_was_dead_from_the_start_is_left_out() -> None:
    net, backend = on_faulty()
    backend.factors[0] = 0.0
    accepted = accept(net)
    assert list(accepted.unusable) == [(0, 0)]
    assert set(probe(net, accepted).tiles) == {(0, 1), (0, 2)}


def test_a_device_that_is_gone_is_no_dead_tile() -> None:
    net, backend = on_faulty()
    accepted = accept(net)
    backend.failing[1] = DeviceUnavailableError("the board is gone")
    with pytest.raises(DeviceUnavailableError, match="gone"):
        probe(net, accepted)


# what is resident, and what is saved


def test_of_a_streamed_network_the_resident_tiles_are_probed_without_programming_any() -> None:
    with pimcal.open_device("gaussian_mul", {"tiles.count": 1, "tiles.rows": 144, "tiles.cols": 16}) as device:
        net = pimcal.deploy(network(), device)
        net(images(2, 1))
        accepted, before = accept(net), device.cost.copy()
        look = probe(net, accepted)
        assert set(look.tiles) == {(net.array.loads - 1, 0)}
        assert device.cost.since(before).programmed_cells == 0
        assert products(golden_inputs(net), 4) == look.mvms


def test_accepted_answers_survive_a_file() -> None:
    with on_gaussian() as net:
        accepted, file = accept(net), io.BytesIO()
        torch.save(accepted.state_dict(), file)
        file.seek(0)
        again = Accepted.from_state(torch.load(file, weights_only=True))
        state = net.device.state_dict()
        first = probe(net, accepted)
        net.device.load_state_dict(state)
        assert probe(net, again).tiles == first.tiles
