"""Calibration that goes on while the network serves, against an independent recomputation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pimcal
from pimcal.calibration.dynamic import DynamicCalibration
from pimcal.errors import UsageError

NOISE = {"device.noise": "mul", "device.eta0": 0.3}
QUIET = {**NOISE, "device.sigma_temporal": 0.0}  # the same error in every batch

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def cnn():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    for norm in (model[1], model[4]):
        norm.momentum = None
    model(images(256))
    return model.eval()


def images(count=16):
    return torch.randn(count, 2, 6, 6) + 1.0  # noise shifts the means of what is not centred


def statistics(model):
    return {
        name: (module.running_mean.clone(), module.running_var.clone())
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }


def assert_same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name in wanted:
        for ours, theirs in zip(found[name], wanted[name], strict=True):
            torch.testing.assert_close(ours, theirs, **tolerance)


def watched(net):
    """All inputs of each BatchNorm, batch by batch, as a hook of the test sees them."""
    seen = {name: [] for name in statistics(net.module)}
    for name, inputs in seen.items():
        module = net.module.get_submodule(name)
        module.register_forward_pre_hook(lambda _m, args, inputs=inputs: inputs.append(args[0].double().clone()))
    return seen


@pytest.mark.parametrize("momentum", [0.0, 0.8, 0.99, 1.0])
def test_ema_is_algorithm_1_continued_from_what_is_in_force(open_backend, momentum):
    model = cnn()
    net = pimcal.deploy(model, open_backend("gaussian", NOISE))
    seen, wanted = watched(net), statistics(model)
    with DynamicCalibration(net, "ema", momentum=momentum) as dynamic:
        for _ in range(6):
            net(images())
    for name, inputs in seen.items():
        mean, var = (value.double() for value in wanted[name])
        for x in inputs:
            flat = x.transpose(0, 1).flatten(1)
            mean = momentum * mean + (1 - momentum) * flat.mean(1)
            var = momentum * var + (1 - momentum) * flat.var(1)  # unbiased, as BatchNorm records it
        wanted[name] = mean.float(), var.float()
    assert_same(statistics(net.module), wanted)
    assert dynamic.updates == 12  # six batches, two BatchNorms


def test_ema_starts_from_the_record_in_force(open_backend):
    net = pimcal.deploy(cnn(), open_backend("gaussian", NOISE))
    net.apply(pimcal.calibrate(net, [images()], "pooled"))
    before = statistics(net.module)
    with DynamicCalibration(net, "ema", momentum=1.0):
        net(images())
    assert_same(statistics(net.module), before)


def test_first_sampled_batch_gives_the_paired_calibration_of_that_batch(open_backend):
    net, x = pimcal.deploy(cnn(), open_backend("gaussian", QUIET)), images()
    wanted = pimcal.calibrate(net, [x], "paired").corrections
    with DynamicCalibration(net, "paired", share=1.0) as dynamic:
        net(x)
    found = dynamic.corrections
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_paired_comes_to_the_paired_calibration_of_all_served_batches(open_backend):
    model, served = cnn(), [images(32) for _ in range(60)]
    net = pimcal.deploy(model, open_backend("gaussian", QUIET))
    wanted = pimcal.calibrate(net, served, "paired").corrections
    with DynamicCalibration(net, "paired", share=1.0, momentum=0.95) as dynamic:
        for x in served:
            net(x)
    for name, (mean, var) in statistics(model).items():
        for found, target, start in (
            (dynamic.corrections[name]["mean"], wanted[name]["mean"], mean),
            (dynamic.corrections[name]["var"], wanted[name]["var"], var),
        ):
            assert (found - target).norm() < 0.1 * (start - target).norm()


def test_paired_changes_nothing_on_an_ideal_device(open_backend):
    model = cnn()
    net = pimcal.deploy(model, open_backend("ideal"))
    with DynamicCalibration(net, "paired", share=1.0):
        for _ in range(4):
            net(images())
    assert_same(statistics(net.module), statistics(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_the_batches_is_drawn_with_the_generator(open_backend, share):
    net = pimcal.deploy(cnn(), open_backend("gaussian", NOISE))
    generator = torch.Generator().manual_seed(5)
    drawn = [float(torch.rand((), generator=generator)) < share for _ in range(20)]
    with DynamicCalibration(net, "paired", share=share, generator=generator.manual_seed(5)) as dynamic:
        for _ in range(20):
            net(images(2))
    assert dynamic.updates == 2 * sum(drawn)
    assert share in (0, 1) or 0 < sum(drawn) < 20


@pytest.mark.parametrize("method", ["ema", "paired"])
def test_no_product_is_spent_on_it_and_the_model_stays_as_it_was(open_backend, method):
    model, device = cnn(), open_backend("gaussian", NOISE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    net = pimcal.deploy(model, device)
    start = device.cost.mvms
    net(images())
    each = device.cost.mvms - start
    with DynamicCalibration(net, method, share=1.0):
        for _ in range(3):
            net(images())
    assert device.cost.mvms - start == 4 * each
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["ema", "paired"])
def test_serving_gets_better_than_without(open_backend, method):
    """The digital model's outputs are the truth; noise is so strong that they are far off at first."""
    model = cnn()
    net = pimcal.deploy(model, open_backend("gaussian", {**NOISE, "device.eta0": 0.6}))
    held_out = images(128)
    before = (net(held_out) - model(held_out)).square().mean()
    with DynamicCalibration(net, method, share=1.0, momentum=0.8):
        for _ in range(30):
            net(images(64))
    assert (net(held_out) - model(held_out)).square().mean() < before / 2


@pytest.mark.parametrize("method", ["ema", "paired"])
def test_revert_brings_back_what_was_in_force(open_backend, method):
    net = pimcal.deploy(cnn(), open_backend("gaussian", QUIET))
    record = pimcal.calibrate(net, [images()], "affine")
    net.apply(record)
    x = images()
    before, wanted = statistics(net.module), net(x)
    with DynamicCalibration(net, method, share=1.0, momentum=0.5) as dynamic:
        net(images())
    assert net.active == "dynamic"
    assert {"gain", "offset"} == set(dynamic.corrections["7"])  # the record's, where no BatchNorm follows
    assert not torch.equal(net(x), wanted)
    net.revert()
    assert net.active == record.id
    assert_same(statistics(net.module), before, rtol=0, atol=0)
    assert torch.equal(net(x), wanted)


@pytest.mark.parametrize("method", ["ema", "paired"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_block_brings_back_what_was_in_force(open_backend, method, error):
    net = pimcal.deploy(cnn(), open_backend("gaussian", QUIET))
    record = pimcal.calibrate(net, [images()], "paired")
    net.apply(record)
    before = statistics(net.module)

    def serve():
        with DynamicCalibration(net, method, share=1.0, momentum=0.5):
            net(images())
            raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        serve()
    assert net.active == record.id
    assert_same(statistics(net.module), before, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["ema", "paired"])
def test_nothing_is_updated_after_the_block(open_backend, method):
    net = pimcal.deploy(cnn(), open_backend("gaussian", NOISE))
    with DynamicCalibration(net, method, share=1.0) as dynamic:
        net(images())
    before, updates = statistics(net.module), dynamic.updates
    net(images())
    assert dynamic.updates == updates
    assert_same(statistics(net.module), before, rtol=0, atol=0)
    for model in (net, net.module, net.reference):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class SharedNorm(nn.Module):
    """One BatchNorm that is called twice, on values that differ much."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(10 * self.second(self.norm(self.first(x))))


def test_both_sides_of_a_shared_batchnorm_have_the_same_call(open_backend):
    model = SharedNorm().eval()
    net = pimcal.deploy(model, open_backend("ideal"))
    with DynamicCalibration(net, "paired", share=1.0) as dynamic:
        net(images())
    assert dynamic.updates == 1
    assert_same(statistics(net.module), statistics(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "pooled"}, "knows 'ema' and 'paired', not 'pooled'"),
        ({"share": 1.5}, r"share \(1.5\)"),
        ({"momentum": -0.1}, r"momentum \(-0.1\)"),
        ({"momentum": float("nan")}, r"momentum \(nan\)"),
    ],
)
def test_wrong_options_are_refused(open_backend, options, said):
    net = pimcal.deploy(cnn(), open_backend("ideal"))
    with pytest.raises(UsageError, match=said):
        DynamicCalibration(net, **options)


def test_a_model_without_batchnorm_is_refused(open_backend):
    net = pimcal.deploy(nn.Linear(4, 3), open_backend("ideal"))
    with pytest.raises(UsageError, match="moves BatchNorm statistics, and this model has none"):
        DynamicCalibration(net)
