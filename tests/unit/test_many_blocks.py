"""Depthwise layers where the device multiplies: their blocks go to it together."""

from collections import Counter

import pytest
import torch
from torch import nn

import pimcal
from pimcal.patches import PartProduct, TilePart
from pimcal_aihwkit.analog_mvm import AnalogMvm, Blocks
from pimcal_aihwkit.config import build
from pimcal_aihwkit.settings import AihwkitSettings

EXACT = {"device.noise.kind": "none", "device.forward.output_noise": 0.0}


def depthwise(channels, **options):
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, **options)


def relative_error(values, exact):
    return float((values - exact).norm() / exact.norm())


@torch.no_grad()
@pytest.mark.parametrize("profile", ["aihwkit_pcm", "board_virtual"])
def test_the_blocks_of_a_layer_are_one_call_of_the_backend(profile, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(depthwise(48), nn.Conv2d(48, 32, 3, groups=4)).eval()
    with pimcal.open_device(profile) as device:
        net, backend, calls = pimcal.deploy(model, device), device.backend, Counter()
        for name in ("matmul", "matmul_part", "matmul_patches", "matmul_parts"):
            monkeypatch.setattr(backend, name, counted(getattr(backend, name), name, calls))
        x = torch.randn(2, 48, 8, 8)

        error = relative_error(net(x), model(x))

    assert 1e-4 < error < 0.4
    assert calls == {"matmul_parts": 2}


def counted(call, name, calls):
    def counting(*args):
        calls[name] += 1
        return call(*args)

    return counting


@torch.no_grad()
def test_a_boards_blocks_wait_for_one_another_once(monkeypatch):
    from pimcal_serial.session import Session

    waits, request_many = Counter(), Session.request_many
    monkeypatch.setattr(Session, "request_many", counted(request_many, "exchange", waits))
    model, x = nn.Sequential(depthwise(48)).eval(), torch.randn(2, 48, 8, 8)
    exact = {"eta0": 0.0, "gain_spread": 0.0}  # no output is clipped and asked for again
    with pimcal.open_device("board_virtual", {f"device.simulator.array.{k}": v for k, v in exact.items()}) as device:
        net = pimcal.deploy(model, device)
        waits.clear()
        net(x)

    assert waits["exchange"] == 1


@torch.no_grad()
@pytest.mark.parametrize("profile", ["aihwkit_pcm", "board_virtual"])
def test_reference_columns_of_blocks_that_share_a_tile(profile):
    torch.manual_seed(0)
    model, x = nn.Sequential(depthwise(48)).eval(), torch.randn(2, 48, 8, 8)
    with pimcal.open_device(profile, {"references.offset": 2, "references.gain": 2}) as device:
        assert relative_error(pimcal.deploy(model, device)(x), model(x)) < 0.4


@torch.no_grad()
def test_a_depthwise_layer_without_noise_is_right_to_its_converters():
    torch.manual_seed(0)
    model = nn.Sequential(depthwise(600, stride=2)).eval()  # on two tiles
    net = pimcal.deploy(model, pimcal.open_device("aihwkit_pcm", EXACT))
    x = torch.randn(3, 600, 9, 9)

    assert relative_error(net(x), model(x)) < 0.02  # 7 and 9 bits


@torch.no_grad()
def test_results_are_the_same_for_the_same_seed_whatever_else_is_there():
    torch.manual_seed(0)
    model, x = nn.Sequential(depthwise(48)).eval(), torch.randn(2, 48, 8, 8)

    def result():
        return pimcal.deploy(model, pimcal.open_device("aihwkit_pcm"))(x)

    assert torch.equal(result(), result())


FORWARDS = {
    "plain": {"output_bound": 0.0, "output_bits": 0, "input_bits": 0, "output_noise": 0.0, "weight_noise": 0.0},
    "converters": {"input_bits": 7, "output_bits": 9, "output_noise": 0.0, "weight_noise": 0.0},
    "saturating": {"output_bound": 1.5, "output_noise": 0.0, "weight_noise": 0.0, "bound_management": "iterative"},
    "worst_case": {
        "output_bound": 1.5,
        "output_noise": 0.0,
        "weight_noise": 0.0,
        "bound_management": "iterative_worst_case",
    },
    "ir_drop": {"ir_drop": 1.0, "output_noise": 0.0, "weight_noise": 0.0},
}


@pytest.mark.parametrize("forward", FORWARDS)
def test_blocks_multiply_like_a_tile_that_gets_nothing_elsewhere(forward):
    """A block's columns are those of the tile with zeros for all other rows, read by themselves."""
    generator = torch.Generator().manual_seed(0)
    settings = AihwkitSettings.model_validate({"noise": {"kind": "none"}, "forward": FORWARDS[forward]})
    mvm = AnalogMvm(build(settings).io)
    tile = torch.rand(12, 40, generator=generator) * 2 - 1  # [cols, rows]
    inputs = torch.randn(4, 300, 10, generator=generator)
    corners = [(0, 0), (3, 10), (6, 30), (9, 25)]
    weights = torch.stack([tile[col : col + 3, row : row + 10] for col, row in corners])

    found = mvm.of_blocks(Blocks(weights, torch.tensor([row for _, row in corners]), 40), inputs, generator)

    for i, (col, row) in enumerate(corners):
        driven = torch.zeros(300, 40)
        driven[:, row : row + 10] = inputs[i]
        expected = mvm(tile[col : col + 3], driven, generator)
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=2e-3)


def test_columns_that_nobody_asks_for_are_left_out():
    with pimcal.open_device("aihwkit_pcm", EXACT) as device:
        weights, inputs = torch.randn(12, 9), torch.randn(5, 4)
        device.program(0, weights)
        part = TilePart(3, 4, 1, 8)

        whole, ends = device.matmul_parts([PartProduct(0, inputs, part), PartProduct(0, inputs, part, ends=(2, 3))])

    assert whole.shape == (5, 8)
    torch.testing.assert_close(ends, whole[:, [0, 1, 5, 6, 7]], rtol=1e-4, atol=1e-4)
    assert relative_error(whole, inputs @ weights[3:7, 1:]) < 0.05


def test_noise_of_blocks_is_as_strong_as_that_of_a_tile():
    generator = torch.Generator().manual_seed(0)
    settings = AihwkitSettings.model_validate({"noise": {"kind": "none"}, "forward": {"output_noise": 0.06}})
    mvm = AnalogMvm(build(settings).io)
    weights, inputs = torch.rand(8, 2, 9, generator=generator) - 0.5, torch.randn(8, 4000, 9, generator=generator)
    exact = inputs @ weights.transpose(1, 2)

    found = mvm.of_blocks(Blocks(weights, torch.zeros(8), 9), inputs, generator) - exact
    alone = torch.stack([mvm(w, x, generator) for w, x in zip(weights, inputs, strict=True)]) - exact

    assert found.std() == pytest.approx(float(alone.std()), rel=0.02)


def test_the_placement_tells_of_layers_with_hundreds_of_blocks_and_what_helps():
    depth = nn.ModuleDict({f"dw{i}": depthwise(300) for i in range(5)})
    model = nn.ModuleDict({"depth": depth, "wide": nn.Linear(320, 160), "few": depthwise(200)})
    tiles = {"tiles.rows": 9, "tiles.cols": 16}

    many = pimcal.deploy(model, pimcal.open_device("aihwkit_pcm", tiles)).placement.notes
    none = pimcal.deploy(model, pimcal.open_device("ideal")).placement.notes

    assert many == (
        "depth.dw0 (300), depth.dw1 (300), depth.dw2 (300) and 2 more layers are cut into 1500 blocks, one a group: "
        "larger tiles do not help these; where they take too long, keep them on the host "
        "(host: ['depth.dw0', 'depth.dw1', 'depth.dw2', ...])",
        "wide (360) are cut into 360 blocks: larger tiles (tiles: rows, cols) need fewer",
    )
    assert none == ()
