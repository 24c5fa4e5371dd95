"""Products that no module's own `forward` makes: they go to the device all the same, under the name of their weight."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import pimcal
from pimcal.errors import PlacementWarning

PROFILES = [
    ("ideal", {}),
    ("ideal", {"tiles.rows": 7, "tiles.cols": 5}),
    ("plain", {}),
    ("plain", {"tiles.rows": 16, "tiles.cols": 16, "tiles.count": 3}),
]


class Net(nn.Module):
    """A module made of parameters and a function."""

    def __init__(self, run, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *inputs):
        return self.run(self, *inputs)


def weight(*shape):
    return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-1]))


def standardized(w):
    axes = tuple(range(1, w.dim()))
    return (w - w.mean(axes, keepdim=True)) / (w.var(axes, keepdim=True, correction=0) + 1e-5).sqrt()


def same_pad(x, kernel):
    return F.pad(x, (kernel // 2, (kernel - 1) // 2) * 2)


class SelfPadding(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(same_pad(x, 4), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class PaddingBefore(nn.Conv2d):
    def forward(self, x):
        return super().forward(same_pad(x, 4))


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, standardized(self.weight), self.bias)


class Lora(nn.Linear):
    def __init__(self):
        super().__init__(6, 6)
        self.a, self.b = weight(2, 6), weight(6, 2)

    def forward(self, x):
        return super().forward(x) + x @ self.a.T @ self.b.T


class Merged(Lora):
    def forward(self, x):
        return F.linear(x, self.weight + self.b @ self.a, self.bias)


class WindowAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(6, 18, bias=False), nn.Linear(6, 6)
        self.q_bias, self.v_bias = weight(6), weight(6)

    def forward(self, x):
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, -1)
        return self.proj((q @ k.transpose(-2, -1)).softmax(-1) @ v)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = weight(3, 6, 8), weight(3, 8, 6)

    def forward(self, x):
        return sum(((x @ self.up[i]).relu() @ self.down[i]) for i in (0, 2))


class SharedProjection(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def hooked(layer, wrap):
    wrap(layer)
    return layer


def old_weight_norm(layer):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
CASES = {
    "linear on a layer's own weight": (
        lambda: Net(lambda m, x: F.linear(x, m.fc.weight, m.fc.bias), fc=nn.Linear(6, 4)),
        X,
        {"fc"},
    ),
    "matmul": (lambda: Net(lambda m, x: x @ m.w, w=weight(6, 4)), X, {"w"}),
    "matmul from the left": (lambda: Net(lambda m, x: m.w @ x, w=weight(4, 5)), X, {"w"}),
    "matmul by name": (lambda: Net(lambda m, x: torch.matmul(other=m.w, input=x), w=weight(6, 4)), X, {"w"}),
    "a vector": (lambda: Net(lambda m, x: m.fc(x) @ m.w, w=weight(4), fc=nn.Linear(6, 4)), X, {"w", "fc"}),
    "inner": (lambda: Net(lambda m, x: torch.inner(x, m.w), w=weight(4, 6)), X, {"w"}),
    "transposed": (lambda: Net(lambda m, x: torch.matmul(x, m.w.t()) + x @ m.w.T, w=weight(4, 6)), X, {"w"}),
    "addmm": (
        lambda: Net(lambda m, x: torch.addmm(m.b, x[0], m.w, beta=0.5, alpha=2.0), w=weight(6, 4), b=weight(4)),
        X,
        {"w"},
    ),
    "baddbmm": (lambda: Net(lambda m, x: torch.baddbmm(m.b, x, m.w), w=weight(3, 6, 4), b=weight(3, 5, 4)), X, {"w"}),
    "bmm": (lambda: Net(lambda m, x: torch.bmm(x, m.w), w=weight(3, 6, 4)), X, {"w"}),
    "expanded": (lambda: Net(lambda m, x: torch.bmm(x, m.w.expand(3, 6, 4)), w=weight(6, 4)), X, {"w"}),
    "einsum": (lambda: Net(lambda m, x: torch.einsum("bnd,hdk->bhnk", x, m.w), w=weight(2, 6, 4)), X, {"w"}),
    "einsum with groups": (lambda: Net(lambda m, x: torch.einsum("bnd,ndk->bnk", x, m.w), w=weight(5, 6, 4)), X, {"w"}),
    "tensordot": (lambda: Net(lambda m, x: torch.tensordot(x, m.w, dims=([2], [1])), w=weight(4, 6)), X, {"w"}),
    "bilinear": (lambda: Net(lambda m, x: m.f(x, x.flip(0)), f=nn.Bilinear(6, 6, 3)), X, {"f"}),
    "lora": (lambda: Net(lambda m, x: m.f(x), f=Lora()), X, {"f", "f.a", "f.b"}),
    "merged lora": (lambda: Net(lambda m, x: m.f(x), f=Merged()), X, {"f"}),
    "experts": (lambda: Net(lambda m, x: m.f(x), f=Experts()), X, {"f.up[0]", "f.up[2]", "f.down[0]", "f.down[2]"}),
    "window attention": (lambda: Net(lambda m, x: m.f(x), f=WindowAttention()), X, {"f.qkv", "f.proj"}),
    "attention's subclass": (lambda: Net(lambda m, x: m.f(x), f=SharedProjection(6, 2)), X, None),
    "self-padding": (lambda: Net(lambda m, x: m.c(x), c=SelfPadding(3, 4, 4)), IMAGES, {"c"}),
    "padding before": (lambda: Net(lambda m, x: m.c(x), c=PaddingBefore(3, 6, 4, groups=3)), IMAGES, {"c"}),
    "weight standardisation": (lambda: Net(lambda m, x: m.c(x), c=StandardizedConv(3, 4, 3)), IMAGES, {"c"}),
    "convolution by function": (
        lambda: Net(lambda m, x: F.conv2d(x, m.w, padding="same", dilation=2), w=weight(4, 3, 1, 3)),
        IMAGES,
        {"w"},
    ),
    "transposed convolution": (
        lambda: Net(lambda m, x: F.conv_transpose2d(x, m.w, stride=2, output_padding=1), w=weight(3, 4, 3, 3)),
        IMAGES,
        {"w"},
    ),
    "volumes": (
        lambda: nn.Sequential(nn.ConvTranspose3d(3, 2, 2, stride=2, padding=1, output_padding=1)),
        IMAGES[:, :, None],
        {"0"},
    ),
    "a lambda around a layer's forward": (lambda: around_forward(nn.Linear(6, 4)), X, {"fc"}),
    "pruned": (
        lambda: Net(lambda m, x: m.f(x), f=hooked(nn.Linear(6, 4), lambda f: prune.l1_unstructured(f, "weight", 0.5))),
        X,
        {"f"},
    ),
    "old weight norm": (lambda: Net(lambda m, x: m.f(x), f=old_weight_norm(nn.Linear(6, 4))), X, {"f"}),
    "layers in a plain list": (
        lambda: Net(
            lambda m, x: m.layers[1](m.layers[0](x)), layers=[nn.Linear(6, 6), nn.Linear(6, 6)], last=nn.Linear(1, 1)
        ),
        X,
        None,
    ),
}


def around_forward(layer):
    net = Net(lambda m, x: m.fc(x), fc=layer)
    own = layer.forward
    layer.forward = lambda x: own(2 * x)
    return net


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the model did not call")
@pytest.mark.parametrize(("profile", "options"), PROFILES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_example", [True, False])
def test_products_are_found_by_what_torch_is_asked_to_do(open_backend, case, profile, options, with_example):
    torch.manual_seed(3)
    make, x, names = CASES[case]
    model = make().eval()
    expected = model(x)

    net = pimcal.deploy(model, open_backend(profile, options), x if with_example else None)

    for _ in range(3):
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    assert net.placement.device_share == pytest.approx(1.0)
    on_device = {row.name for row in net.placement.layers if row.on_device and row.share}
    assert names is None or on_device == names
    assert net.device.cost.mvms > 0
    torch.testing.assert_close(copy.deepcopy(net)(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("case", ["experts", "self-padding", "weight standardisation", "window attention", "bmm"])
def test_they_have_the_devices_noise(open_backend, case):
    make, x, _ = CASES[case]
    model = make().eval()

    net = pimcal.deploy(model, open_backend("gaussian", {"device.noise": "mul", "device.eta0": 0.3}))

    assert not torch.allclose(net(x), model(x), rtol=1e-2)
    assert torch.equal(net.reference(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("pattern", "kept"),
    [("f.down[2]", {"f.down[2]"}), ("f.down", {"f.down[0]", "f.down[2]"}), ("f.up*", {"f.up[0]", "f.up[2]"})],
)
def test_a_pattern_keeps_them_on_the_host(open_backend, pattern, kept):
    make, x, names = CASES["experts"]
    model = make()

    net = pimcal.deploy(
        model, open_backend("gaussian", {"device.noise": "mul", "device.eta0": 0.3, "host": [pattern]}), x
    )

    assert {row.name for row in net.placement.layers if not row.on_device} == kept
    assert {row.name for row in net.placement.layers if row.on_device} == names - kept


@torch.no_grad()
@pytest.mark.parametrize("method", ["affine", "paired"])
def test_they_are_calibrated(open_backend, method):
    torch.manual_seed(0)
    model = nn.Sequential(
        StandardizedConv(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), SelfPadding(8, 8, 4), nn.Flatten(), lora_head()
    )
    x = torch.randn(64, 3, 8, 8)
    model.train()(x)
    model.eval()
    net = pimcal.deploy(model, open_backend("gaussian", {"device.noise": "mul", "device.eta0": 0.4}), x[:2])
    wrong = F.mse_loss(net(x), model(x))

    net.apply(pimcal.calibrate(net, x.split(16), method))

    assert F.mse_loss(net(x), model(x)) < (0.5 if method == "affine" else 0.95) * wrong
    net.revert()
    net.apply(pimcal.calibrate(net, [x[:32]], method))


def lora_head():
    return Net(lambda m, x: x @ m.w, w=weight(8 * 6 * 6, 5))


@torch.no_grad()
@pytest.mark.parametrize("method", ["affine", "paired", "pooled", "ema"])
@pytest.mark.parametrize("case", ["weight standardisation", "lora", "experts"])
def test_all_batches_of_a_calibration_run_on_the_device(open_backend, case, method):
    make, x, _ = CASES[case]
    layers = [make(), nn.Flatten(2), nn.BatchNorm1d(x.shape[1] if x.dim() == 3 else 4)]
    model = nn.Sequential(*(layers if x.dim() == 4 else [layers[0], layers[2]])).eval()
    net = pimcal.deploy(model, open_backend("ideal", {"calibration.batch_size": 2}), x)
    before = net.device.cost.mvms
    net(x)
    each = (net.device.cost.mvms - before) // len(x)

    record = pimcal.calibrate(net, [x, x + 1, x - 1, 2 * x], method)

    assert record.made_with.mvms == 4 * len(x) * each


@torch.no_grad()
def test_a_calibration_on_an_ideal_device_changes_nothing(open_backend):
    make, x, _ = CASES["window attention"]
    model = make()
    net = pimcal.deploy(model, open_backend("ideal"), x)

    net.apply(pimcal.calibrate(net, [x, x + 1, x - 1], "affine"))

    torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_made_from_the_inputs_are_multiplied_on_the_host_and_this_is_said(open_backend):
    def run(m, x):
        made = {"weight": m.make(x.mean((0, 1))).reshape(4, 6), "bias": m.base.bias}
        return torch.func.functional_call(m.base, made, x)

    model = Net(run, base=nn.Linear(6, 4), make=nn.Linear(6, 24))

    net = pimcal.deploy(model, open_backend("ideal"))

    with pytest.warns(PlacementWarning, match="base: called with weights that are not their own"):
        torch.testing.assert_close(net(X), model(X))
    torch.testing.assert_close(net(X + 1), model(X + 1))
    assert net.placement.inputs_share == pytest.approx(15 / 21)  # 15 vectors by 6 x 4 weights that 6 x 24 made
    assert {row.name for row in net.placement.layers if row.on_device and row.share} == {"make"}


@torch.no_grad()
def test_a_mixture_of_experts_places_an_expert_when_it_is_first_asked(open_backend):
    def run(m, x):
        return m.experts[int(x[0, 0, 0] > 0)](x)

    model = Net(run, experts=nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)]))
    device = open_backend(
        "gaussian", {"device.noise": "mul", "device.eta0": 0.3, "tiles.count": 2, "tiles.rows": 8, "tiles.cols": 8}
    )
    with pytest.warns(PlacementWarning, match="did not call experts.1"):
        net = pimcal.deploy(model, device, -X.abs())
    assert device.cost.programmed_cells == 36

    assert not torch.allclose(net(X.abs()), model(X.abs()))
    assert device.cost.programmed_cells == 72
    assert not torch.allclose(net(-X.abs()), model(-X.abs()))


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 2)),
    ],
)
@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize(("profile", "options"), PROFILES)
def test_a_weight_that_changes_is_programmed_anew_and_this_is_said(open_backend, change, functional, profile, options):
    model = Net(lambda m, x: F.linear(x, m.fc.weight) if functional else m.fc(x), fc=nn.Linear(6, 4, bias=False))
    net = pimcal.deploy(model, open_backend(profile, options), X)
    before = net(X)

    change(net.module.fc)

    with pytest.warns(PlacementWarning, match="fc were changed: they are programmed anew"):
        torch.testing.assert_close(net(X), 2 * before)
    torch.testing.assert_close(net(X), 2 * before)


@torch.no_grad()
def test_the_model_that_was_deployed_may_be_trained_on(open_backend):
    model = nn.Sequential(nn.Linear(6, 4))
    net = pimcal.deploy(model, open_backend("ideal"))
    net(X)

    model[0].weight.add_(1)

    with pytest.warns(PlacementWarning, match="weights of 0 were changed"):
        torch.testing.assert_close(net(X), net.reference(X))


@torch.no_grad()
def test_most_of_the_work_on_the_host_is_warned_of_once(open_backend):
    model = Net(lambda m, x: m.fc(torch.linalg.multi_dot([x[0], m.w, m.w])), w=weight(6, 6), fc=nn.Linear(6, 2))
    net = pimcal.deploy(model, open_backend("ideal"))

    with pytest.warns(PlacementWarning, match=r"8\d % of the multiplications by weights stay on the host .*multi_dot"):
        net(X)
    net(X)
    assert net.placement.device_share == pytest.approx(60 / (60 + 5 * 36 + 216), rel=0.3)


@torch.no_grad()
@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped products")
def test_grouped_products_use_each_experts_matrix(open_backend):
    def run(m, x):
        offsets = torch.tensor([2, 2, 5], dtype=torch.int32)
        return torch._grouped_mm(x, m.w.transpose(-2, -1), offs=offsets)

    model, x = Net(run, w=nn.Parameter(torch.randn(3, 16, 8, dtype=torch.bfloat16))), torch.randn(5, 8).bfloat16()
    expected = torch.cat([x[:2] @ model.w[0].t(), x[2:] @ model.w[2].t()])

    net = pimcal.deploy(model, open_backend("ideal"), x)

    torch.testing.assert_close(net(x), expected, rtol=2e-2, atol=2e-2)
    assert {row.name for row in net.placement.layers if row.on_device and row.share} == {"w[0]", "w[2]"}


@torch.no_grad()
def test_a_recurrent_layer_with_a_forward_of_its_own_is_opened(open_backend):
    class Last(nn.LSTM):
        def forward(self, x):
            return super().forward(2 * x)[0][-1]

    model, x = nn.Sequential(Last(6, 4), nn.Linear(4, 2)), X

    net = pimcal.deploy(model, open_backend("ideal"), x)

    torch.testing.assert_close(net(x), model(x))
    assert net.placement.device_share == 1


@torch.no_grad()
@pytest.mark.parametrize("settled", [True, False])
def test_the_digital_model_stays_digital_within_a_session(open_backend, settled):
    make, x, _ = CASES["experts"]
    model = nn.Sequential(make(), nn.Linear(6, 2))
    net = pimcal.deploy(
        model, open_backend("gaussian", {"device.noise": "mul", "device.eta0": 0.5}), x if settled else None
    )

    with net.session():
        clean, noisy = net.reference(x), net.module(x)

    assert torch.equal(clean, model(x))
    assert not torch.allclose(noisy, clean, rtol=1e-2)


@torch.no_grad()
def test_a_product_by_a_buffer_is_listed_and_is_no_weights_product(open_backend):
    model = Net(lambda m, x: m.fc(x @ m.filters), fc=nn.Linear(8, 2))
    model.register_buffer("filters", torch.randn(6, 8))

    net = pimcal.deploy(model, open_backend("ideal"), X)

    torch.testing.assert_close(net(X), model(X))
    row = next(row for row in net.placement.layers if "matmul" in row.name)
    assert "multiplies by a buffer or a constant" in row.reason
    assert net.placement.device_share == 1
