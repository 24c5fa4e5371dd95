"""Layers as matrices: the five views of a product agree with torch's own layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pimcal.matrices import inherits_forward, view_of

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
# torch says so itself, of its own layer, at padding="same" with an even kernel
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def vectors(draw, low, high, dims):
    return tuple(draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))


@st.composite
def linears(draw):
    layer = nn.Linear(draw(st.integers(1, 5)), draw(st.integers(1, 5)), bias=draw(st.booleans()))
    leading = draw(st.lists(st.integers(1, 3), max_size=3))
    return layer, torch.randn(*leading, layer.in_features)


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    kernel, dilation = vectors(draw, 1, 3, dims), vectors(draw, 1, 2, dims)
    least = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [n + extra for n, extra in zip(least, vectors(draw, 0, 2, dims), strict=True)]
    padding = draw(st.sampled_from(["ints", "same", "valid"]))
    stride = (1,) * dims if padding == "same" else vectors(draw, 1, 3, dims)
    if padding == "ints":
        padding = tuple(min(p, n - 1) for p, n in zip(vectors(draw, 0, 2, dims), size, strict=True))
    layer = CONVOLUTIONS[dims](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    return layer, torch.randn(draw(st.integers(1, 2)), layer.in_channels, *size)


@st.composite
def transposed(draw):
    dims = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    kernel, stride, dilation = vectors(draw, 2, 3, dims), vectors(draw, 1, 3, dims), vectors(draw, 1, 3, dims)
    layer = TRANSPOSED[dims](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride,
        vectors(draw, 0, 1, dims),
        tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)),
        groups,
        bias=draw(st.booleans()),
        dilation=dilation,
    )
    return layer, torch.randn(draw(st.integers(1, 2)), layer.in_channels, *vectors(draw, 2, 4, dims))


LAYERS = st.one_of(linears(), convolutions(), transposed())


def without_bias(layer, x):
    y = layer(x)
    if layer.bias is None:
        return y
    channel_dim = -1 if isinstance(layer, nn.Linear) else 1
    shape = [-1 if d == channel_dim % y.dim() else 1 for d in range(y.dim())]
    return y - layer.bias.reshape(shape)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@settings(max_examples=100)
@given(LAYERS)
def test_the_fused_view_is_the_layer(case):
    layer, x = case
    view = view_of(layer)

    side_by_side = torch.cat(list(view.matrix(layer.weight)), dim=1)
    close(view.fused(x, side_by_side, layer.bias), layer(x))


@torch.no_grad()
@settings(max_examples=100)
@given(LAYERS)
def test_patches_times_matrix_are_the_layer(case):
    layer, x = case
    view = view_of(layer)
    x, added = view.batched(x)

    patches, matrix = view.patches(x), view.matrix(layer.weight)

    assert matrix.shape == (view.groups, view.rows, view.cols)
    assert patches.shape[1] == view.groups
    assert patches.shape[3] == view.rows
    y = view.finish((patches @ matrix).transpose(2, 3), x)
    close(y.squeeze(0) if added else y, without_bias(layer, x.squeeze(0) if added else x))
    assert view.positions(x, y) == patches.shape[0] * patches.shape[2]


@torch.no_grad()
@settings(max_examples=100)
@given(LAYERS, st.data())
def test_products_over_any_cuts_of_rows_and_columns_add_up_to_the_layer(case, data):
    layer, x = case
    view = view_of(layer)
    x, added = view.batched(x)
    row_cut, col_cut = data.draw(st.integers(0, view.rows)), data.draw(st.integers(0, view.cols))
    matrix = view.matrix(layer.weight)

    halves = []
    for cols in (slice(0, col_cut), slice(col_cut, view.cols)):
        parts = [
            view.product(x, matrix[:, start:stop, cols], start, stop)
            for start, stop in ((0, row_cut), (row_cut, view.rows))
            if start < stop and cols.start < cols.stop
        ]
        halves += [sum(parts)] if parts else []

    y = view.finish(torch.cat(halves, dim=2), x)
    close(y.squeeze(0) if added else y, without_bias(layer, x.squeeze(0) if added else x))


@torch.no_grad()
@given(LAYERS)
def test_channels_are_where_the_view_says(case):
    layer, x = case
    view = view_of(layer)

    assert layer(x).shape[view.channel_dim] == view.channels


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(2, 4, 3), nn.Conv1d(2, 4, 3), nn.ConvTranspose2d(2, 4, 3), nn.Linear(5, 2)]
)
def test_a_single_sample_without_a_batch_dimension_is_recognised(layer):
    view = view_of(layer)
    single = torch.randn(*([5] if isinstance(layer, nn.Linear) else [2, *[5] * view.dims]))

    assert view.batched(single)[0].shape == (1, *single.shape)
    assert view.batched(single.unsqueeze(0))[1] is False


@pytest.mark.parametrize(
    "module", [nn.ReLU(), nn.BatchNorm2d(3), nn.Embedding(3, 4), nn.Bilinear(2, 2, 2), nn.LSTM(2, 2)]
)
def test_other_modules_have_no_matrix_view(module):
    assert view_of(module) is None


def test_a_layer_with_a_forward_of_its_own_is_told_apart():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x).exp()

    class OwnKernel(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, weight.sign(), bias)

    class Renamed(nn.Linear):
        pass

    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x

    assert inherits_forward(Renamed(2, 2))
    assert not inherits_forward(Own(2, 2))
    assert not inherits_forward(OwnKernel(2, 2, 1))
    assert not inherits_forward(patched)
    assert not inherits_forward(nn.Bilinear(2, 2, 2))


@settings(deadline=None)
@given(convolutions(), st.data())
def test_overlapping_vectors_are_the_patches_without_copies(drawn, data):
    layer, x = drawn
    view = view_of(layer)
    channels = view.rows // view.row_unit
    first = data.draw(st.integers(0, channels - 1))
    start, stop = first * view.row_unit, data.draw(st.integers(first + 1, channels)) * view.row_unit
    group = data.draw(st.integers(0, view.groups - 1))
    found = view.overlapping(x, group, start, stop)
    if view.row_unit == 1:
        assert found is None
        return
    expected = view.patches(x)[:, group, :, start:stop]
    assert torch.equal(found.vectors(), expected.flatten(0, 1))
    assert found.positions_per_map == expected.shape[1]


def test_a_cut_within_a_channel_has_no_patches():
    view, x = view_of(nn.Conv2d(2, 1, 3)), torch.randn(1, 2, 5, 5)
    assert view.overlapping(x, 0, 0, 9) is not None
    assert view.overlapping(x, 0, 0, 10) is None
    assert view.overlapping(x, 0, 3, 18) is None


def test_a_linear_layer_has_no_patches():
    assert view_of(nn.Linear(3, 2)).overlapping(torch.randn(4, 3), 0, 0, 3) is None
