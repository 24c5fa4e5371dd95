"""Calibration while the network serves."""

import pytest
import torch
from torch import nn

import pimcal
from pimcal.calibration.dynamic import DynamicCalibration
from pimcal.errors import UsageError

GAIN = {"device.noise": "mul", "device.eta0": 0.5, "device.sigma_temporal": 0.0, "device.sigma_spatial": 0.0}


def network():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=None), nn.ReLU(), nn.Linear(4, 3))
    model(torch.randn(1024, 5))
    return model.eval()


def error(net, x):
    return float((net(x) - net.reference(x)).abs().mean())


@torch.no_grad()
@pytest.mark.parametrize("method", ["ema", "paired"])
def test_serving_moves_the_statistics_towards_what_the_device_needs(open_backend, method):
    net, x = pimcal.deploy(network(), open_backend("gaussian", {**GAIN, "host": ["3"]})), torch.randn(256, 5)
    before = error(net, x)

    with DynamicCalibration(net, method, momentum=0.8, share=1.0) as dynamic:
        for _ in range(30):
            net(torch.randn(64, 5))

    assert dynamic.updates == 30
    assert net.active == "dynamic"
    assert error(net, x) < before / 3
    net.revert()
    assert error(net, x) == pytest.approx(before)


@torch.no_grad()
def test_ema_is_the_moving_average_of_each_served_batch(open_backend):
    net = pimcal.deploy(network(), open_backend("ideal"))
    norm, layer = net.reference[1], net.reference[0]
    mean, var = norm.running_mean.clone(), norm.running_var.clone()

    with DynamicCalibration(net, "ema", momentum=0.7):
        for _ in range(3):
            x = torch.randn(9, 5)
            net(x)
            mean, var = 0.7 * mean + 0.3 * layer(x).mean(0), 0.7 * var + 0.3 * layer(x).var(0)

    torch.testing.assert_close(net.module[1].running_mean, mean)
    torch.testing.assert_close(net.module[1].running_var, var)


@torch.no_grad()
def test_pairing_without_noise_changes_not_a_single_bit(open_backend):
    net, x = pimcal.deploy(network(), open_backend("ideal")), torch.randn(8, 5)
    before = net(x)

    with DynamicCalibration(net, "paired", share=1.0):
        for _ in range(5):
            net(torch.randn(8, 5))

    assert torch.equal(net(x), before)


@torch.no_grad()
def test_every_way_of_calling_the_network_is_paired(open_backend):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)

        def forward(self, x, pair, *, y):
            return self.norm(self.layer(x + pair[0]) + y)

    net, x = pimcal.deploy(Model(), open_backend("ideal")), torch.randn(8, 5)

    with DynamicCalibration(net, "paired", share=1.0) as dynamic:
        net(x, (x, None), y=torch.ones(4))

    assert dynamic.updates == 1
    assert torch.equal(net.module.norm.running_mean, net.reference.norm.running_mean)


@torch.no_grad()
def test_only_a_share_of_the_batches_is_run_digitally_and_none_costs_the_device(open_backend):
    net, digital = pimcal.deploy(network(), open_backend("ideal")), []
    net.reference[0].register_forward_pre_hook(lambda module, args: digital.append(1))

    with DynamicCalibration(net, "paired", share=0.3, generator=torch.Generator().manual_seed(1)) as dynamic:
        for _ in range(100):
            net(torch.randn(2, 5))

    assert 15 < len(digital) == dynamic.updates < 45
    assert net.device.cost.mvms == 100 * 2 * 2


@torch.no_grad()
def test_after_an_exception_the_network_is_as_before(open_backend):
    net, x = pimcal.deploy(network(), open_backend("gaussian", GAIN)), torch.randn(8, 5)
    net.apply(pimcal.calibrate(net, [x], "affine"))
    before, active = net(x), net.active

    def serve():
        with DynamicCalibration(net, "ema", momentum=0.5):
            net(x * 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve()

    assert net.active == active
    assert torch.equal(net(x), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"method": "affine"}, "not 'affine'"), ({"share": 1.5}, "share"), ({"momentum": -0.1}, "momentum")],
)
def test_what_makes_no_sense_is_refused(open_backend, options, message):
    with pytest.raises(UsageError, match=message):
        DynamicCalibration(pimcal.deploy(network(), open_backend("ideal")), **options)


def test_a_model_without_batchnorm_is_refused(open_backend):
    with pytest.raises(UsageError, match="this model has none"):
        DynamicCalibration(pimcal.deploy(nn.Linear(2, 2), open_backend("ideal")))
