"""Layers whose attributes or weights were changed after they were made: the device does what torch does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pimcal
from pimcal.errors import UsageError

LAYERS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}


@st.composite
def changed_layers(draw):
    """A convolution with attributes that differ from those it was made with, and an input that it takes."""
    dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.sampled_from([1, 2]))
    kernel = draw(st.integers(1, 3))
    mode = "zeros" if transposed else draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    layer = LAYERS[dims][transposed](4, 6, kernel, padding=draw(st.integers(0, 1)), groups=groups, padding_mode=mode)
    number = st.integers(1, 2)
    changes = {"stride": number, "dilation": number, "padding": st.integers(0, 2)}
    for name in draw(st.sets(st.sampled_from(sorted(changes)))):
        value = draw(st.one_of(changes[name], st.tuples(*[changes[name]] * dims)))
        setattr(layer, name, (value,) * dims if isinstance(value, int) else value)
    if transposed and draw(st.booleans()):
        layer.output_padding = tuple(max(s, d) - 1 for s, d in zip(layer.stride, layer.dilation, strict=True))
    if not transposed and draw(st.booleans()):
        layer.padding_mode = "zeros"
    return layer, torch.randn(2, 4, *[7] * dims)


@torch.no_grad()
@settings(max_examples=150)
@given(changed_layers(), st.sampled_from(["ideal", "plain"]), st.booleans(), st.booleans())
def test_geometry_is_what_torch_uses(open_backend, case, backend, afterwards, with_example):
    layer, x = case
    model = nn.Sequential(layer).eval()
    device = open_backend(backend, {"tiles.rows": 11, "tiles.cols": 7})
    if not afterwards:
        expected = model(x)
        net = pimcal.deploy(model, device, x if with_example else None)
    else:  # deployed as it would have been, and changed then
        plain = type(layer)(4, 6, layer.weight.shape[2:], groups=layer.groups)
        plain.load_state_dict(layer.state_dict())
        net = pimcal.deploy(nn.Sequential(plain), device, x if with_example else None)
        for name in (
            "stride",
            "dilation",
            "padding",
            "output_padding",
            "padding_mode",
            "_reversed_padding_repeated_twice",
        ):
            setattr(net.module[0], name, getattr(layer, name))
        expected = model(x)

    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_usual_change_to_a_residual_networks_first_layer(open_backend):
    conv = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
    conv.weight = nn.Parameter(conv.weight[:, :, 2:5, 2:5].clone())
    conv.stride, conv.padding = (1, 1), (1, 1)
    model, x = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1)), torch.randn(2, 3, 9, 9)

    torch.testing.assert_close(pimcal.deploy(model, open_backend("ideal"))(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
def test_weights_cut_by_hand_have_the_size_of_their_tensors(open_backend, backend):
    linear, conv = nn.Linear(6, 5), nn.Conv2d(3, 8, 3)
    linear.weight, linear.bias = nn.Parameter(linear.weight[:3, :4].clone()), nn.Parameter(linear.bias[:3].clone())
    conv.weight, conv.bias = nn.Parameter(conv.weight[:4, :2].clone()), nn.Parameter(conv.bias[:4].clone())
    model, x = nn.Sequential(conv, nn.Flatten(2), linear), torch.randn(2, 2, 4, 4)

    net = pimcal.deploy(model, open_backend(backend))

    torch.testing.assert_close(net(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "x"), [(nn.Linear(6, 5), torch.randn(2, 6)), (nn.Conv2d(4, 4, 3), torch.randn(2, 4, 5, 5))]
)
def test_a_weight_of_another_size_after_deployment_is_refused(open_backend, layer, x):
    net = pimcal.deploy(nn.Sequential(layer), open_backend("ideal"))
    net.module[0].weight = nn.Parameter(layer.weight[:3].clone())

    with pytest.raises(UsageError, match=r"layer 0 was changed after it was deployed.*deploy the changed model"):
        net(x)


@torch.no_grad()
def test_groups_changed_after_deployment_are_refused(open_backend):
    net = pimcal.deploy(nn.Sequential(nn.Conv2d(4, 4, 1)), open_backend("ideal"))
    net.module[0].groups = 2

    with pytest.raises(UsageError, match="layer 0 was changed after it was deployed"):
        net(torch.randn(1, 4, 3, 3))
