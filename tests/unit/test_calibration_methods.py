"""The four methods: what they find, against independent recomputations, and that they leave the network alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import pimcal
from pimcal.calibration.methods import METHODS
from pimcal.device import Device
from pimcal.errors import DataError, DeviceUnavailableError, UsageError
from pimcal.ideal import Ideal, IdealSettings

MUL = {"device.noise": "mul", "device.eta0": 0.4, "device.sigma_spatial": 0.3, "device.sigma_temporal": 0.0}
REDRAWN = {"device.noise": "mul", "device.eta0": 0.3}
SIZE_8 = {"calibration.batch_size": 8}


def cnn():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=None), nn.ReLU(),
        nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4),
    )  # fmt: skip
    model(images(1024))  # statistics that are those of the images
    return model.eval()


def layer_norm_net():
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))


class SharedNorm(nn.Module):
    """One layer and one BatchNorm, both used twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        for _ in range(2):
            x = self.norm(self.layer(x)).tanh()
        return self.head(x)


class SharedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.layer(self.layer(x).tanh()).tanh())


class Branching(nn.Module):
    """Bright images take another way than dark ones."""

    def __init__(self):
        super().__init__()
        self.stem, self.bright, self.norm, self.last = (
            nn.Linear(6, 6), nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.BatchNorm1d(6),
        )  # fmt: skip
        self.head = nn.Linear(6, 6)

    def forward(self, x):
        y = self.stem(x)
        if float(x.mean()) > 0:
            y = self.bright(y)
        return self.last(self.head(self.norm(y)))


def images(count, *shape):
    return torch.randn(count, *(shape or (2, 5, 5)))


def snapshot(net):
    """Everything that a calibration could leave behind in a deployed network."""
    state = copy.deepcopy(net.module.state_dict())
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in net.module.named_modules()}
    hooks_of_reference = {n: len(m._forward_hooks) for n, m in net.reference.named_modules()}
    corrections = {n: layer.correction and layer.correction.gain.clone() for n, layer in net.layers.items()}
    return state, hooks, hooks_of_reference, corrections, net.active


def assert_as_before(before, net):
    now = snapshot(net)
    assert before[1:3] == now[1:3]
    assert before[4:] == now[4:]
    for kept, found in ((before[0], now[0]), (before[3], now[3])):
        assert kept.keys() == found.keys()
        for name, value in kept.items():
            assert torch.equal(value, found[name]) if value is not None else found[name] is None, name


def agreement(net, x):
    """Mean distance to the digital model, as a share of its outputs' spread."""
    clean = net.reference(x)
    return float((net(x) - clean).abs().mean() / clean.std())


# without noise


@torch.no_grad()
@pytest.mark.parametrize("method", ["paired", "affine"])
@pytest.mark.parametrize("sizes", [[16], [8, 8], [3, 5, 8]])
@pytest.mark.parametrize(("model", "shape"), [(cnn, (2, 5, 5)), (SharedNorm, (6,)), (Branching, (6,))])
def test_pairing_without_noise_changes_not_a_single_bit(open_backend, method, sizes, model, shape):
    net = pimcal.deploy(model(), open_backend("ideal"))
    x = images(5, *shape)
    before = net(x)
    shift = [0.5 * (-1) ** i for i in range(len(sizes))]  # a Branching network takes both its ways

    record = pimcal.calibrate(net, [images(n, *shape) + s for n, s in zip(sizes, shift, strict=True)], method)
    net.apply(record)

    assert torch.equal(net(x), before)
    for name, values in record.corrections.items():
        if "mean" in values:
            norm = net.reference.get_submodule(name)
            assert torch.equal(values["mean"], norm.running_mean)
            assert torch.equal(values["var"], norm.running_var)


# against independent recomputations


def numpy_moments(values):
    pooled = values.double().transpose(0, 1).flatten(1).numpy()
    return pooled.mean(1), pooled.var(1), pooled.var(1, ddof=1)


@torch.no_grad()
@pytest.mark.parametrize("momentum", [0.999, 0.5])
def test_ema_is_algorithm_1_recomputed_in_numpy(open_backend, momentum):
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    gain = 1.4  # of a device that reads every weight too large, always
    settings = {**MUL, "device.sigma_spatial": 0.0, "device.eta0": gain - 1, "calibration.batch_size": 7}
    net = pimcal.deploy(model, open_backend("gaussian", settings))
    batches = [images(n, 5) for n in (7, 7, 4)]

    record = pimcal.calibrate(net, batches, "ema", momentum=momentum)

    averages = {}
    for batch in batches:
        x = batch.double().numpy()
        for linear, norm in (("0", "1"), ("3", "4")):
            layer, bn = model[int(linear)], model[int(norm)]
            x = x @ (gain * layer.weight.double().numpy().T) + layer.bias.double().numpy()
            mean, var, unbiased = x.mean(0), x.var(0), x.var(0, ddof=1)
            if norm in averages:
                old_mean, old_var = averages[norm]
                averages[norm] = (
                    momentum * old_mean + (1 - momentum) * mean,
                    momentum * old_var + (1 - momentum) * unbiased,
                )
            else:
                averages[norm] = mean, unbiased
            x = (x - mean) / np.sqrt(var + bn.eps) * bn.weight.double().numpy() + bn.bias.double().numpy()
            x = np.maximum(x, 0)
    for name, (mean, var) in averages.items():
        np.testing.assert_allclose(record.corrections[name]["mean"].numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(record.corrections[name]["var"].numpy(), var, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pooled_is_the_moments_of_each_norms_inputs_behind_corrected_layers(open_backend):
    model = cnn()
    net = pimcal.deploy(model, open_backend("gaussian", MUL))
    batches = [images(n) for n in (7, 4, 9)]

    record = pimcal.calibrate(net, batches, "pooled")

    noisy = copy.deepcopy(model)
    with net.session():
        for i in (0, 3, 7):
            shape = noisy[i].weight.shape
            noisy[i].weight.copy_(net.layers[str(i)].matrix._weights(torch.float32).t().reshape(shape))
    x = torch.cat(batches)
    for i in (1, 4):
        mean, _, unbiased = numpy_moments(noisy[:i](x))
        np.testing.assert_allclose(record.corrections[str(i)]["mean"].numpy(), mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(record.corrections[str(i)]["var"].numpy(), unbiased, rtol=1e-3, atol=1e-5)
        noisy[i].running_mean.copy_(torch.from_numpy(mean))
        noisy[i].running_var.copy_(torch.from_numpy(unbiased))


@torch.no_grad()
def test_paired_moves_the_statistics_by_what_the_device_did_to_the_same_images(open_backend):
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval()
    model[1].running_mean.copy_(torch.randn(4))
    model[1].running_var.copy_(torch.rand(4) + 0.5)
    net = pimcal.deploy(model, open_backend("gaussian", MUL))
    batches = [images(n, 5) for n in (7, 4)]

    record = pimcal.calibrate(net, batches, "paired")

    x = torch.cat(batches)
    with net.session():
        noisy_mean, noisy_var, _ = numpy_moments(net.module[0](x))
    clean_mean, clean_var, _ = numpy_moments(model[0](x))
    eps = model[1].eps
    found = record.corrections["1"]
    expected_mean = model[1].running_mean.numpy() + noisy_mean - clean_mean
    np.testing.assert_allclose(found["mean"].numpy(), expected_mean, rtol=1e-4, atol=1e-5)
    expected_var = model[1].running_var.numpy() * (noisy_var + eps) / (clean_var + eps)
    np.testing.assert_allclose(found["var"].numpy(), expected_var, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", ["pooled", "paired", "affine"])
def test_the_result_does_not_depend_on_how_the_images_are_split(open_backend, method):
    net = pimcal.deploy(cnn(), open_backend("gaussian", MUL))  # the noise is the same in every batch
    x = images(24)

    whole = pimcal.calibrate(net, [x], method)
    split = pimcal.calibrate(net, x.split([1, 7, 4, 12]), method)

    assert whole.corrections.keys() == split.corrections.keys()
    for name, values in whole.corrections.items():
        for key, value in values.items():
            torch.testing.assert_close(split.corrections[name][key], value, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", ["pooled", "paired"])
def test_a_norm_that_is_used_twice_gets_the_statistics_of_both_uses(open_backend, method):
    model = SharedNorm().eval()
    gain = {**MUL, "device.sigma_spatial": 0.0, "device.eta0": 0.5, "calibration.batch_size": 25}
    net = pimcal.deploy(model, open_backend("gaussian", gain))
    x = images(50, 6)
    inputs = []
    handle = net.module.norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))

    record = pimcal.calibrate(net, [x[:25], x[25:]], method)

    handle.remove()
    assert len(inputs) == 4
    if method == "pooled":
        mean, _, unbiased = numpy_moments(torch.cat(inputs))
        np.testing.assert_allclose(record.corrections["norm"]["mean"].numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(record.corrections["norm"]["var"].numpy(), unbiased, rtol=1e-4)
    before = agreement(net, x)
    net.apply(record)
    if method == "paired":
        assert agreement(net, x) < before


@torch.no_grad()
def test_a_layer_that_is_used_twice_gets_the_gain_that_both_uses_need(open_backend):
    gain = {**MUL, "device.sigma_spatial": 0.0, "device.eta0": 0.5}
    net = pimcal.deploy(SharedLayer(), open_backend("gaussian", gain))
    x = images(50, 6)

    net.apply(pimcal.calibrate(net, [x[:20], x[20:]], "affine"))

    torch.testing.assert_close(net.corrections["layer"]["gain"], torch.full((6,), 1 / 1.5), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(x), net.reference(x), rtol=1e-3, atol=1e-4)


# what they are for


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_calibration_brings_the_noisy_network_closer_to_the_digital_one(open_backend, method):
    net = pimcal.deploy(cnn(), open_backend("gaussian", MUL))
    held_out = images(256)
    before = agreement(net, held_out)

    net.apply(pimcal.calibrate(net, [images(256)], method))

    assert agreement(net, held_out) < before * 0.7


@torch.no_grad()
@pytest.mark.parametrize("method", ["paired", "affine"])
def test_pairing_corrects_what_reference_columns_leave(open_backend, method):
    net = pimcal.deploy(cnn(), open_backend("gaussian", {**MUL, "references.offset": 1, "references.gain": 1}))
    held_out = images(256)
    before = agreement(net, held_out)

    net.apply(pimcal.calibrate(net, [images(256)], method))

    assert agreement(net, held_out) < before


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "shape"),
    [(layer_norm_net, (6,)), (lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 3, 3)), (2, 9))],
)
def test_affine_corrects_networks_without_batchnorm(open_backend, model, shape):
    net = pimcal.deploy(model(), open_backend("gaussian", MUL))
    held_out = images(64, *shape)
    before = agreement(net, held_out)

    net.apply(pimcal.calibrate(net, [images(64, *shape)], "affine"))

    assert agreement(net, held_out) < before / 2


@torch.no_grad()
def test_affine_reaches_the_projections_of_a_transformer(open_backend):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    net = pimcal.deploy(model, open_backend("gaussian", {**MUL, "host": ["layers.*.linear*"]}))
    held_out = images(32, 5, 8)
    before = agreement(net, held_out)

    record = pimcal.calibrate(net, [images(32, 5, 8)], "affine")
    net.apply(record)

    parts = ("q_proj", "k_proj", "v_proj", "out_proj")
    assert set(record.corrections) == {f"layers.0.self_attn.{part}" for part in parts}
    assert agreement(net, held_out) < before / 2


@torch.no_grad()
def test_affine_folds_into_a_norm_that_follows(open_backend):
    net = pimcal.deploy(cnn(), open_backend("gaussian", MUL))

    record = pimcal.calibrate(net, [images(32)], "affine")

    assert {name: set(values) for name, values in record.corrections.items()} == {
        "1": {"mean", "var"},
        "4": {"mean", "var"},
        "7": {"gain", "offset"},
    }


@torch.no_grad()
@pytest.mark.parametrize("between", [nn.ReLU(), nn.ReLU(inplace=True)])
def test_affine_corrects_a_layer_with_an_activation_before_its_norm(open_backend, between):
    model = nn.Sequential(nn.Linear(6, 8), between, nn.BatchNorm1d(8)).eval()

    record = pimcal.calibrate(pimcal.deploy(model, open_backend("gaussian", MUL)), [images(32, 6)], "affine")

    assert set(record.corrections) == {"0", "2"}


@torch.no_grad()
def test_pairing_follows_control_flow_that_depends_on_the_images(open_backend):
    net = pimcal.deploy(Branching().eval(), open_backend("gaussian", {**MUL, "device.sigma_spatial": 0.0}))
    bright, dark = images(40, 6) + 1, images(40, 6) - 1

    net.apply(pimcal.calibrate(net, [dark, bright, dark + 0.1, bright + 0.1], "paired"))

    assert set(net.corrections) == {"bright", "norm", "last"}
    for x in (bright, dark):
        with net.uncorrected():
            before = agreement(net, x)
        assert agreement(net, x) < before


@torch.no_grad()
def test_a_norm_called_by_keyword_is_measured(open_backend):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

        def forward(self, x):
            return self.norm(input=self.layer(input=x))

    record = pimcal.calibrate(pimcal.deploy(Model(), open_backend("ideal")), [images(8, 6)], "pooled")

    assert set(record.corrections) == {"norm"}


# nothing is left behind


def failing_model(left):
    """A network that raises in the `left[0]`-th call of its last part, whatever runs it."""

    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cnn()

        def forward(self, x):
            y = self.net[:5](x)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return self.net[5:](y)

    return Failing()


@torch.no_grad()
@pytest.mark.parametrize("applied", [None, "affine"])
@pytest.mark.parametrize("method", METHODS)
def test_calibrating_leaves_the_network_as_it_was(open_backend, method, applied):
    net = pimcal.deploy(cnn(), open_backend("gaussian", REDRAWN))
    if applied:
        net.apply(pimcal.calibrate(net, [images(16)], applied))
    before = snapshot(net)

    pimcal.calibrate(net, [images(8), images(8)], method)

    assert_as_before(before, net)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_ctrl_c_inside_the_model_leaves_the_network_as_it_was(open_backend, method, after):
    left = [100]
    net = pimcal.deploy(failing_model(left), open_backend("gaussian", {**REDRAWN, **SIZE_8}))
    net.apply(pimcal.calibrate(net, [images(16)], "affine"))
    before = snapshot(net)
    left[0] = after
    batches = [images(8) for _ in range(5)]

    with pytest.raises(KeyboardInterrupt):
        pimcal.calibrate(net, batches, method)

    assert_as_before(before, net)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_ctrl_c_in_the_progress_bar_leaves_the_network_as_it_was(open_backend, method, calls):
    net = pimcal.deploy(cnn(), open_backend("gaussian", {**REDRAWN, **SIZE_8}))
    net.apply(pimcal.calibrate(net, [images(16)], "affine"))
    before, left = snapshot(net), [calls]

    def progress(done):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    # ema reports once a batch
    with pytest.raises(KeyboardInterrupt):
        pimcal.calibrate(net, [images(8), images(8), images(8)], method, progress=progress)

    assert_as_before(before, net)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_a_device_that_fails_midway_leaves_the_network_as_it_was(open_backend, method):
    class Failing(Ideal):
        left = 10**9

        def effective_weights(self, tile):
            self.left -= 1
            if self.left <= 0:
                raise OSError("link lost")
            return super().effective_weights(tile)

    profile = open_backend("ideal", SIZE_8).profile
    backend = Failing(IdealSettings(), profile.tiles)
    net = pimcal.deploy(cnn(), Device(backend, profile))
    before = snapshot(net)
    backend.left = 5

    with pytest.raises(DeviceUnavailableError, match="link lost"):
        pimcal.calibrate(net, [images(8), images(8)], method)

    assert_as_before(before, net)


@torch.no_grad()
def test_statistics_that_were_changed_by_hand_are_kept(open_backend):
    net = pimcal.deploy(cnn(), open_backend("gaussian", REDRAWN))
    net.module[1].running_mean.add_(1.0)
    before = snapshot(net)

    pimcal.calibrate(net, [images(8)], "paired")

    assert_as_before(before, net)


# what they cost


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_costs_one_pass_on_the_device(open_backend, method):
    net = pimcal.deploy(cnn(), open_backend("ideal", {"calibration.batch_size": 6}))
    net(images(1))
    one_image = net.device.cost.mvms

    record = pimcal.calibrate(net, [images(5), images(6)], method)

    assert record.made_with.mvms == 11 * one_image
    assert (record.made_with.images, record.made_with.batches) == (11, 2)


@torch.no_grad()
@pytest.mark.parametrize("method", ["pooled", "paired", "affine"])
def test_a_streamed_network_is_programmed_once(open_backend, method):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    tiles = {"tiles.count": 1, "tiles.rows": 6, "tiles.cols": 6}
    net = pimcal.deploy(model, open_backend("ideal", {**tiles, "calibration.batch_size": 5}))
    assert net.placement.loads == 4
    cells = net.device.cost.programmed_cells

    pimcal.calibrate(net, [images(5, 6) for _ in range(4)], method)

    assert net.device.cost.programmed_cells - cells <= net.placement.cells


@torch.no_grad()
def test_noise_is_redrawn_for_every_batch_that_is_measured(open_backend):
    device = open_backend("gaussian", {**REDRAWN, **SIZE_8})
    net = pimcal.deploy(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), device)
    x, inputs = images(8, 6), []
    net.module[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))

    pimcal.calibrate(net, [x, x], "paired")

    assert not torch.equal(*inputs)


# what they refuse


@pytest.mark.parametrize("method", ["ema", "pooled", "paired"])
def test_a_model_without_batchnorm_is_told_to_use_affine(open_backend, method):
    with pytest.raises(UsageError, match="no BatchNorm with running statistics; use method 'affine'") as caught:
        pimcal.calibrate(pimcal.deploy(layer_norm_net(), open_backend("ideal")), [images(8, 6)], method)
    assert caught.value.exit_code == 2


def test_an_unknown_method_is_refused(open_backend):
    with pytest.raises(
        UsageError, match="unknown calibration method 'best'; choose one of: ema, pooled, paired, affine"
    ):
        pimcal.calibrate(pimcal.deploy(cnn(), open_backend("ideal")), [images(8)], "best")


@pytest.mark.parametrize(("batches", "count"), [([], 0), ([torch.zeros(1, 2, 5, 5)], 1)])
def test_too_few_images_are_refused(open_backend, batches, count):
    with pytest.raises(DataError, match=f"at least 2 images to measure a spread, got {count}") as caught:
        pimcal.calibrate(pimcal.deploy(cnn(), open_backend("ideal")), batches)
    assert caught.value.exit_code == 65


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_images_that_are_no_numbers_are_refused_by_the_layer_where_they_show(open_backend, method):
    net = pimcal.deploy(cnn(), open_backend("ideal"))
    before = snapshot(net)

    with pytest.raises(DataError, match="measured NaN or infinity at 1"):
        pimcal.calibrate(net, [images(4), torch.full((4, 2, 5, 5), torch.nan)], method)

    assert_as_before(before, net)


@torch.no_grad()
def test_batches_may_be_tuples_dicts_and_iterators(open_backend):
    net, x = pimcal.deploy(cnn(), open_backend("gaussian", MUL)), images(8)
    wanted = pimcal.calibrate(net, [x]).corrections

    for batches in ([(x, torch.zeros(8))], iter([x]), [{"input": x, "labels": torch.zeros(8)}], [[x]]):
        found = pimcal.calibrate(net, batches).corrections
        assert all(torch.equal(found[name]["mean"], values["mean"]) for name, values in wanted.items())
