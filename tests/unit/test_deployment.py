"""Deploying a network: its results, its interface, what it refuses, and that the model itself is never touched."""

import copy
import threading
from collections import namedtuple

import pytest
import torch
from torch import nn

import pimcal
from pimcal.errors import ConfigError, DataError, DeviceUnavailableError, UsageError

Result = namedtuple("Result", "features logits")
NOISE = {"device.noise": "mul", "device.eta0": 0.3}


def cnn():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip
    model(torch.randn(16, 2, 5, 5))  # statistics that are not the initial ones
    return model


def everything(model):
    """All that must stay as it was: bytes, types, flags, hooks and attributes of every module."""
    tensors = [(n, t.dtype, t.requires_grad, t.data_ptr(), t.detach().clone()) for n, t in state(model)]
    modules = [
        (n, type(m), m.training, sorted(vars(m)), "forward" in vars(m), len(m._forward_hooks))
        for n, m in model.named_modules()
    ]
    return tensors, modules


def state(model):
    return [*model.named_parameters(), *model.named_buffers()]


def assert_same(before, after):
    assert before[1] == after[1]
    for (*about, values), (*about_now, values_now) in zip(before[0], after[0], strict=True):
        assert about == about_now
        assert torch.equal(values, values_now), about


def test_the_model_itself_is_untouched_by_everything(open_backend):
    model = cnn()
    before = everything(model)
    batches = [torch.randn(8, 2, 5, 5) for _ in range(2)]

    net = pimcal.deploy(model, open_backend("gaussian", NOISE))
    net(batches[0])
    for method in ("ema", "pooled", "paired", "affine"):
        net.apply(pimcal.calibrate(net, batches, method))
        net(batches[0])
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    copy.deepcopy(net)(batches[0])
    net.revert()
    net.train()
    net.requires_grad_(True)
    net.double()(batches[0].double())
    net.half().float()(batches[0])

    assert_same(before, everything(model))


@torch.no_grad()
def test_an_ideal_device_changes_nothing_at_all(open_backend):
    model, x = cnn().eval(), torch.randn(3, 2, 5, 5)

    net = pimcal.deploy(model, open_backend("ideal"))

    assert torch.equal(net(x), model(x))
    assert torch.equal(net.reference(x), model(x))


def test_a_model_in_training_mode_is_deployed_for_inference(open_backend):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.BatchNorm1d(4)).train()
    x = torch.randn(3, 4)

    net = pimcal.deploy(model, open_backend("ideal"))

    assert model.training
    assert torch.equal(net(x), net.train()(x))
    assert torch.equal(net(x), model.eval()(x))


@torch.no_grad()
def test_layers_stay_on_the_host_by_pattern_and_then_have_no_noise(open_backend):
    model, x = cnn().eval(), torch.randn(3, 2, 5, 5)

    some = pimcal.deploy(model, open_backend("gaussian", {**NOISE, "host": ["0", "7"]}))
    expected_shape = some(x).shape

    reasons = {row.name: row.reason for row in some.placement.layers}
    assert reasons == {"0": "kept by host pattern '0'", "3": "", "7": "kept by host pattern '7'"}
    assert some(x).shape == expected_shape
    assert torch.equal(some.module[0](x), model[0](x))
    assert not torch.allclose(some(x), model(x))


def test_a_pattern_without_a_layer_is_noted(open_backend):
    net = pimcal.deploy(cnn(), open_backend("ideal", {"host": ["fc"]}))

    assert "host pattern 'fc' matches no layer of this model" in str(net.placement)


@torch.no_grad()
def test_the_placement_says_why_a_layer_stayed(open_backend):
    class Sign(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.sign())

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.sign, self.embed, self.head = Sign(4, 4), nn.Embedding(2, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.sign(x) + self.embed.weight.mean(0))

    model, x = Model(), torch.randn(5, 2, 4)

    net = pimcal.deploy(model, open_backend("ideal"))

    torch.testing.assert_close(net(x), model(x))
    assert "host: Embedding looks up, it multiplies nothing" in str(net.placement)
    assert [row.name for row in net.placement.layers if row.on_device] == ["sign", "head"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.again, self.decode = (
            nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False),
        )  # fmt: skip
        self.again.weight = self.inner.weight
        self.decode.weight = self.embed.weight

    def forward(self, tokens):
        return self.decode(self.again(self.inner(self.embed(tokens)).tanh()))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
def test_tied_weights_share_their_tiles_and_stay_tied(open_backend, backend):
    model, tokens = Tied(), torch.randint(9, (2, 5))

    net = pimcal.deploy(model, open_backend(backend))

    torch.testing.assert_close(net(tokens), model(tokens))
    rows = {row.name: row for row in net.placement.layers}
    assert rows["inner"].tiles == rows["again"].tiles
    assert net.placement.cells == 16 + 36
    assert net.device.cost.programmed_cells == 16 + 36
    assert net.module.inner.weight is net.module.again.weight
    assert net.module.embed.weight is net.module.decode.weight


@torch.no_grad()
def test_tied_weights_see_the_same_noise(open_backend):
    model = Tied()
    model.again.bias = model.inner.bias
    net = pimcal.deploy(model, open_backend("gaussian", NOISE))
    x = torch.randn(3, 4)

    with net.session():
        inner, again = (layer(x) for layer in (net.module.inner, net.module.again))

    assert torch.equal(inner, again)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
def test_one_weight_read_as_different_matrices_is_placed_twice(open_backend, backend):
    whole, grouped = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3, groups=2)
    grouped.weight = whole.weight
    model, x = nn.Sequential(whole, grouped), torch.randn(2, 2, 9)

    torch.testing.assert_close(pimcal.deploy(model, open_backend(backend))(x), model(x))


@torch.no_grad()
def test_any_signature_and_any_structure_of_results_goes_through(open_backend):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, pair, *, scale, names=("a", "b")):
            left, right = self.left(pair[0]), self.right(pair[1])
            return {"sum": left + scale * right, "parts": Result(left, [right]), "names": names}

    model, pair = Model(), (torch.randn(2, 3), torch.randn(2, 2))

    net = pimcal.deploy(model, open_backend("ideal"))

    y, expected = net(pair, scale=2.0, names="xy"), model(pair, scale=2.0, names="xy")
    assert y["names"] == "xy"
    assert isinstance(y["parts"], Result)
    for found, wanted in ((y["sum"], expected["sum"]), (y["parts"].logits[0], expected["parts"].logits[0])):
        torch.testing.assert_close(found, wanted)


def test_hooks_of_the_users_model_still_fire(open_backend):
    model, calls = cnn().eval(), []
    model[0].register_forward_pre_hook(lambda module, args: calls.append("before"))
    model[0].register_forward_hook(lambda module, args, y: calls.append("after") or y * 2)

    net = pimcal.deploy(model, open_backend("ideal"))
    x = torch.randn(3, 2, 5, 5)
    y = net(x)

    assert calls == ["before", "after"]
    torch.testing.assert_close(y, model(x))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
def test_parametrized_weights_go_to_the_device_as_they_are_used(open_backend, backend):
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.utils.parametrizations.spectral_norm(nn.Conv1d(3, 3, 1)),
    ).eval()
    x = torch.randn(2, 3, 3)

    net = pimcal.deploy(model, open_backend(backend))

    torch.testing.assert_close(net(x), model(x))
    assert len(net.layers) == 2


@torch.no_grad()
def test_a_model_that_is_one_layer(open_backend):
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)

    torch.testing.assert_close(pimcal.deploy(layer, open_backend("plain"))(x), layer(x))


def test_gradients_still_reach_the_inputs(open_backend):
    model, x = cnn().eval(), torch.randn(2, 2, 5, 5, requires_grad=True)
    net = pimcal.deploy(model, open_backend("ideal"))

    (found,) = torch.autograd.grad(net(x).sum(), x)

    torch.testing.assert_close(found, torch.autograd.grad(model(x).sum(), x)[0])


@torch.no_grad()
def test_a_copy_computes_the_same_and_its_noise_goes_on(open_backend):
    net = pimcal.deploy(cnn(), open_backend("gaussian", NOISE))
    net.apply(pimcal.calibrate(net, [torch.randn(8, 2, 5, 5)]))
    x = torch.randn(3, 2, 5, 5)

    twin = copy.deepcopy(net)

    assert twin.device is net.device
    with net.session():  # one batch: the same noise for both
        assert torch.equal(twin.module(x), net.module(x))
    assert not torch.equal(twin(x), twin(x))
    twin.revert()
    assert net.active is not None


def test_use_after_close_is_refused(open_backend):
    device = open_backend("ideal")
    net = pimcal.deploy(cnn(), device)
    device.close()

    for use in (
        lambda: net(torch.randn(2, 2, 5, 5)),
        lambda: pimcal.calibrate(net, [torch.randn(8, 2, 5, 5)]),
        lambda: pimcal.calibrate(net, [torch.randn(8, 2, 5, 5)], "ema"),
        lambda: pimcal.deploy(cnn(), device),
        lambda: device.telemetry(),
        lambda: device.advance(1.0),
    ):
        with pytest.raises(
            DeviceUnavailableError, match=r"ideal is closed; open it again with pimcal\.open_device"
        ) as caught:
            use()
        assert caught.value.exit_code == 69


def test_closing_twice_is_no_error_and_closes_once(open_backend):
    device = open_backend("ideal")
    closed = []
    device.backend.close = lambda: closed.append(True)

    with device:
        device.close()
    device.close()

    assert closed == [True]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(open_backend, bad):
    model = cnn()
    model[3].weight.data[0, 0, 0, 0] = bad

    with pytest.raises(DataError, match="layer 3: 1 of 72 weights are NaN or infinite") as caught:
        pimcal.deploy(model, open_backend("ideal"))
    assert caught.value.exit_code == 65


def test_a_model_without_a_matrix_product_is_refused(open_backend):
    with pytest.raises(DataError, match="no layer with a matrix product"):
        pimcal.deploy(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), open_backend("ideal"))


def test_a_model_that_stays_on_the_host_as_a_whole_is_refused_with_the_reasons(open_backend):
    with pytest.raises(ConfigError, match=r"nothing is left for the device \(0: kept by host pattern '\*'\)"):
        pimcal.deploy(nn.Sequential(nn.Linear(2, 2)), open_backend("ideal", {"host": ["*"]}))


def test_a_lazy_model_is_refused(open_backend):
    with pytest.raises(UsageError, match=r"0\.weight is lazy"):
        pimcal.deploy(nn.Sequential(nn.LazyLinear(3)), open_backend("ideal"))


def test_a_model_that_cannot_be_copied_is_refused(open_backend):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].guard = threading.Lock()

    with pytest.raises(DataError, match=r"0\.guard cannot be copied .*lock.*remove it before you deploy"):
        pimcal.deploy(model, open_backend("ideal"))


@torch.no_grad()
def test_a_tensor_of_a_training_graph_among_the_attributes_is_copied(open_backend):
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.randn(1, 2)
    with torch.enable_grad():
        model.cache = model(x)

    net = pimcal.deploy(model, open_backend("ideal"))

    assert torch.equal(net.module.cache, model.cache)
    assert torch.equal(net(x), model(x))


@torch.no_grad()
def test_deploying_in_inference_mode_can_be_calibrated_outside(open_backend):
    with torch.inference_mode():
        net = pimcal.deploy(cnn(), open_backend("ideal"))

    net.apply(pimcal.calibrate(net, [torch.randn(8, 2, 5, 5)]))


def test_an_open_device_is_not_pickled(open_backend, tmp_path):
    with pytest.raises(TypeError, match=r"torch\.save\(net\.state_dict\(\), path\)"):
        torch.save(pimcal.deploy(cnn(), open_backend("ideal")), tmp_path / "never-written")


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: (compiled(model), model),
        lambda model: (compiled(model[0]), model[0]),
        lambda model: (compiled(nn.Sequential(compiled(model[:6]), *model[6:])), nn.Sequential(model[:6], *model[6:])),
        lambda model: (nn.Sequential(compiled(model[:3]), compiled(model[3])), nn.Sequential(model[:3], model[3])),
    ],
    ids=["the whole", "one layer", "within another", "parts"],
)
def test_a_compiled_model_is_deployed_as_the_plain_one(open_backend, wrap):
    model, plain = wrap(cnn().eval())
    before, x = [name for name, _ in model.named_modules()], torch.randn(3, 2, 5, 5)

    net, expected = (pimcal.deploy(m, open_backend("gaussian", NOISE)) for m in (model, plain))

    assert torch.equal(net(x), expected(x))
    assert list(net.layers) == list(expected.layers)
    assert list(net.state_dict()) == list(expected.state_dict())
    assert net.model_hash == expected.model_hash
    assert [name for name, _ in model.named_modules()] == before
    shared = {p.data_ptr() for p in net.module.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert shared == {p.data_ptr() for p in plain.modules() for p in p.parameters(recurse=False) if p.dim() > 1}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("place", ["the model", "1"])
def test_torchscript_is_refused(open_backend, place):
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
    model = scripted if place == "the model" else nn.Sequential(nn.Linear(4, 4), scripted)

    with pytest.raises(UsageError, match=f"{place} is TorchScript.*deploy the Python module it was scripted from"):
        pimcal.deploy(model, open_backend("ideal"))


def test_what_is_no_module_or_no_device_is_refused(open_backend):
    with pytest.raises(UsageError, match=r"takes a torch\.nn\.Module, not a Tensor"):
        pimcal.deploy(torch.zeros(2), open_backend("ideal"))
    with pytest.raises(UsageError, match=r"takes an open device, not a str; open one with pimcal\.open_device"):
        pimcal.deploy(nn.Linear(2, 2), "ideal")
