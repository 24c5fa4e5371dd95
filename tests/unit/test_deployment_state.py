"""A deployed network saves and loads: the same outputs follow, noise included."""

import copy

import pytest
import torch
from torch import nn

import pimcal
from pimcal.device import Device
from pimcal.errors import DataError
from pimcal.ideal import Ideal, IdealSettings

NOISE = {"device.noise": "mul", "device.eta0": 0.3}
STREAMED = {"tiles.count": 1, "tiles.rows": 36, "tiles.cols": 6}


def cnn():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip
    model(torch.randn(16, 2, 5, 5))
    return model.eval()


def images(count=4):
    return torch.randn(count, 2, 5, 5)


def saved_and_loaded(net, folder):
    torch.save(net.state_dict(), folder / "net.pt")
    return torch.load(folder / "net.pt", weights_only=True)


@torch.no_grad()
@pytest.mark.parametrize(("backend", "noise"), [("gaussian", NOISE), ("ideal", {}), ("plain", {})])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {**STREAMED, "references.gain": 1, "references.offset": 1},
        {"tiles.count": 2, "tiles.rows": 9, "tiles.cols": 4, "references.gain": 1},  # smaller than each layer
    ],
)
def test_a_loaded_state_gives_the_same_outputs_to_the_bit(open_backend, tmp_path, backend, noise, options):
    model, x = cnn(), images()
    net = pimcal.deploy(model, open_backend(backend, {**noise, **options}))
    net.apply(pimcal.calibrate(net, [images(8)], "affine"))
    net(x)
    state = saved_and_loaded(net, tmp_path)
    expected = [net(x) for _ in range(3)]

    other = pimcal.deploy(model, open_backend(backend, {**noise, **options}))
    other.load_state_dict(state)

    assert other.active == net.active
    for y in expected:
        assert torch.equal(other(x), y)


@torch.no_grad()
def test_the_constants_of_reference_columns_are_known_after_loading(open_backend, tmp_path):
    model, x = cnn(), images()
    options = {**STREAMED, "references.gain": 1}
    net = pimcal.deploy(model, open_backend("ideal", options))
    net(x)
    assert net.array.resident == {0: net.placement.loads - 1} != {0: 0}

    other = pimcal.deploy(model, open_backend("ideal", options))
    other.load_state_dict(saved_and_loaded(net, tmp_path))

    with other.session():  # the last layer's load is on the device, and nothing is programmed for it
        cells = other.device.cost.programmed_cells
        hidden = torch.randn(2, 36)
        torch.testing.assert_close(other.module[7](hidden), model[7](hidden), rtol=1e-4, atol=1e-5)
        assert other.device.cost.programmed_cells == cells


@torch.no_grad()
def test_records_in_force_are_saved_and_can_be_reverted_after_loading(open_backend, tmp_path):
    model, x = cnn(), images()
    net = pimcal.deploy(model, open_backend("ideal"))
    records = [pimcal.calibrate(net, [images(8) * scale], "pooled") for scale in (1, 3)]
    for record in records:
        net.apply(record)

    other = pimcal.deploy(model, open_backend("ideal"))
    other.load_state_dict(saved_and_loaded(net, tmp_path))

    assert other.active == records[1].id
    assert torch.equal(other(x), net(x))
    net.revert()
    other.revert()
    assert other.active == records[0].id
    assert torch.equal(other(x), net(x))
    other.revert()
    assert torch.equal(other(x), model(x))


def different(model, name):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(name).add_(1.0)
    return other


@torch.no_grad()
@pytest.mark.parametrize("name", ["0.weight", "7.bias"])
def test_the_state_of_another_model_is_refused_and_changes_nothing(open_backend, name):
    model, x = cnn(), images()
    net = pimcal.deploy(model, open_backend("ideal"))
    other = pimcal.deploy(different(model, name), open_backend("ideal"))

    with pytest.raises(DataError, match=f"state has other weights for {name} than the device holds"):
        net.load_state_dict(other.state_dict())

    assert torch.equal(net(x), model(x))


@pytest.mark.parametrize("name", ["in_proj_weight", "out_proj.weight"])
def test_the_state_of_another_attention_is_refused_and_the_model_is_untouched(open_backend, name):
    model = nn.MultiheadAttention(8, 2)
    before = copy.deepcopy(model.state_dict())
    net = pimcal.deploy(model, open_backend("ideal"))
    other = pimcal.deploy(different(model, name), open_backend("ideal"))

    with pytest.raises(DataError, match="state has other weights"):
        net.load_state_dict(other.state_dict())

    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_state_fits_whatever_precision_the_network_has_now(open_backend, dtype):
    net = pimcal.deploy(cnn(), open_backend("ideal"))
    state = copy.deepcopy(net.state_dict())

    net.to(dtype).load_state_dict(state)

    assert net(images().to(dtype)).dtype == dtype


@torch.no_grad()
@pytest.mark.parametrize("convert", [nn.Module.double, nn.Module.half, nn.Module.bfloat16])
@pytest.mark.parametrize("method", ["paired", "affine"])
def test_a_network_of_another_precision_is_calibrated_and_corrected(open_backend, convert, method):
    net = convert(pimcal.deploy(cnn(), open_backend("gaussian", NOISE)))
    batches = [images(8).to(net.module[0].weight.dtype) for _ in range(2)]

    net.apply(pimcal.calibrate(net, batches, method))

    y = net(batches[0])
    assert y.dtype == batches[0].dtype
    assert torch.isfinite(y).all()


@torch.no_grad()
def test_a_real_device_keeps_what_is_on_it(open_backend):
    class Chip(Ideal):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise AssertionError("a real device has no state to load")

    profile, model, x = open_backend("ideal", STREAMED).profile, cnn(), images()
    first, second = (pimcal.deploy(model, Device(Chip(IdealSettings(), profile.tiles), profile)) for _ in range(2))
    first(x)

    second.load_state_dict(first.state_dict())

    assert second.array.resident == {0: 0}  # as it was programmed there, not as it was saved elsewhere
    torch.testing.assert_close(second(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("gaussian", NOISE),
        ("ideal", {"references.gain": 1}),
        ("ideal", {"tiles.rows": 5}),
        ("ideal", {"host": ["0"]}),
    ],
)
def test_a_simulators_state_is_refused_where_the_placement_differs(open_backend, backend, options):
    model, x = cnn(), images()
    state = pimcal.deploy(model, open_backend("ideal")).state_dict()
    net = pimcal.deploy(model, open_backend(backend, options))

    with pytest.raises(DataError, match="deploy with the profile that it was saved with"):
        net.load_state_dict(state)

    if backend == "ideal":
        torch.testing.assert_close(net(x), model(x))
