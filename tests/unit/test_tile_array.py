"""What is on the tiles: streaming, several networks on one device, interrupted programming."""

import copy

import pytest
import torch
from torch import nn

import pimcal
from pimcal.device import Device
from pimcal.ideal import Ideal, IdealSettings

SMALL = {"tiles.count": 1, "tiles.rows": 12, "tiles.cols": 10}


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
@pytest.mark.parametrize("references", [{}, {"references.offset": 1, "references.gain": 1}])
def test_a_streamed_network_computes_what_one_that_fits_does(open_backend, backend, references):
    model, x = network(), torch.randn(4, 6)

    fits = pimcal.deploy(model, open_backend(backend, references))
    streamed = pimcal.deploy(model, open_backend(backend, {**SMALL, **references}))

    assert fits.placement.loads == 1
    assert streamed.placement.loads == 3
    torch.testing.assert_close(streamed(x), fits(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(streamed(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_layers_that_share_a_tile_do_not_disturb_one_another(open_backend):
    model, x = network(), torch.randn(4, 6)

    net = pimcal.deploy(model, open_backend("plain", {"tiles.count": 1, "tiles.rows": 16, "tiles.cols": 24}))

    assert {row.tiles for row in net.placement.layers} == {(0,)}
    assert net.placement.loads == 1
    torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_load_that_is_on_the_device_is_not_programmed_again(open_backend):
    net = pimcal.deploy(network(), open_backend("ideal"))
    cells = net.device.cost.programmed_cells

    net(torch.randn(4, 6))

    assert net.device.cost.programmed_cells == cells == net.placement.cells


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, SMALL])
def test_two_networks_on_one_device_never_use_each_others_weights(open_backend, options):
    device = open_backend("ideal", options)
    models, x = (network(), network()), torch.randn(4, 6)
    nets = [pimcal.deploy(model, device) for model in models]

    for model, net in (*zip(models, nets, strict=True), *zip(models, nets, strict=True)):
        torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_copy_knows_which_load_the_other_left_on_the_device(open_backend):
    model, x = network(), torch.randn(4, 6)
    net = pimcal.deploy(model, open_backend("ideal", SMALL))
    twin = copy.deepcopy(net)

    net(x)  # leaves the last load on the tiles

    torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_interrupted_programming_is_made_good_at_the_next_call(open_backend):
    class Interrupted(Ideal):
        left = 4

        def program(self, tile, weights):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            super().program(tile, weights)

    options = {"tiles.count": 2, "tiles.rows": 6, "tiles.cols": 10}  # two tiles for each but the first layer
    profile = open_backend("ideal", options).profile
    model, x = network(), torch.randn(4, 6)
    net = pimcal.deploy(model, Device(Interrupted(IdealSettings(), profile.tiles), profile))

    with pytest.raises(KeyboardInterrupt):
        net(x)

    torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-5)
