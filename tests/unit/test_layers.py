"""Layers on tiles: the host's path and the device's path, against torch's own layers and against each other."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pimcal
from pimcal.calibration.estimate import vectors_per_input
from pimcal.device import Device
from pimcal.ideal import Ideal, IdealSettings

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
# torch says so itself, of its own layer, at padding="same" with an even kernel
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


class UnsignedIdeal(Ideal):
    """Exact, but conductances and voltages know no sign."""

    def __init__(self, *, tiles, **announced):
        super().__init__(IdealSettings(), tiles)
        self._capabilities = dataclasses.replace(self._capabilities, **announced)

    def program(self, tile, weights):
        assert self._capabilities.signed_weights or weights.min() >= 0
        super().program(tile, weights)


def tuples(draw, low, high, dims):
    return tuple(draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims)))


@st.composite
def layers(draw):
    kind = draw(st.sampled_from(["linear", "conv", "transposed"]))
    bias, samples = draw(st.booleans()), draw(st.lists(st.integers(1, 2), max_size=1))
    if kind == "linear":
        layer = nn.Linear(draw(st.integers(1, 7)), draw(st.integers(1, 5)), bias=bias)
        return layer, torch.randn(*samples, *draw(st.lists(st.integers(1, 2), max_size=1)), layer.in_features)
    groups = draw(st.integers(1, 2))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    if kind == "transposed":
        dims = draw(st.integers(1, 2))
        stride = tuples(draw, 1, 2, dims)
        layer = TRANSPOSED[dims](
            *channels, tuples(draw, 2, 3, dims), stride, draw(st.integers(0, 1)),
            tuple(draw(st.integers(0, s - 1)) for s in stride), groups, bias, draw(st.integers(1, 2)),
        )  # fmt: skip
        return layer, torch.randn(*samples, channels[0], *tuples(draw, 2, 3, dims))
    dims = draw(st.integers(1, 3))
    kernel, dilation = tuples(draw, 1, 2, dims), tuples(draw, 1, 2, dims)
    padding = draw(st.sampled_from([0, 1, "same", "valid"]))
    layer = CONVOLUTIONS[dims](
        *channels, kernel, 1 if padding == "same" else tuples(draw, 1, 2, dims), padding, dilation, groups, bias,
        draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )  # fmt: skip
    return layer, torch.randn(*samples, channels[0], *tuples(draw, 3, 4 if dims < 3 else 3, dims))


TILES = st.fixed_dictionaries(
    {"tiles.rows": st.none() | st.integers(1, 9), "tiles.cols": st.none() | st.integers(4, 9)}
)
REFERENCES = st.fixed_dictionaries({"references.offset": st.integers(0, 2), "references.gain": st.integers(0, 1)})


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol)


def eighths(layer, x):
    """Weights and inputs whose sums are exact in float32, so that no converter's tie falls either way."""
    with torch.no_grad():
        layer.weight.copy_((layer.weight * 8).round() / 8)
    return (x * 8).round() / 8


@torch.no_grad()
@settings(max_examples=60)
@given(layers(), TILES)
def test_products_on_the_device_equal_torchs_own_layer(open_backend, case, tiles):
    layer, x = case
    net = pimcal.deploy(layer, open_backend("plain", tiles))

    close(net(x), layer(x))


@torch.no_grad()
@settings(max_examples=60)
@given(layers(), TILES, REFERENCES)
def test_products_on_the_host_equal_torchs_own_layer(open_backend, case, tiles, references):
    layer, x = case
    net = pimcal.deploy(layer, open_backend("ideal", {**tiles, **references}))

    close(net(x), layer(x))


@torch.no_grad()
@settings(max_examples=60)
@given(
    layers(), TILES, REFERENCES, st.sampled_from([{}, {"io.input_bits": 8}, {"io.input_bits": 6, "io.output_bits": 8}])
)
def test_both_paths_agree_with_converters_and_reference_columns(open_backend, case, tiles, references, io):
    layer, x = case
    x = eighths(layer, x)
    options = {**tiles, **references, **io}

    on_host, on_device = (pimcal.deploy(layer, open_backend(backend, options)) for backend in ("ideal", "plain"))

    close(on_host(x), on_device(x))
    assert on_host.device.cost.mvms == on_device.device.cost.mvms


@torch.no_grad()
@settings(max_examples=40)
@given(layers(), TILES, REFERENCES, st.booleans(), st.booleans())
def test_integer_devices_are_as_exact_as_their_codes(open_backend, case, tiles, references, weights, inputs):
    layer, x = case
    device = {"weight_bits": 14, "input_bits": 14, "signed_weights": weights, "signed_inputs": inputs}
    options = {**tiles, **references, **{f"device.{key}": value for key, value in device.items()}}

    net = pimcal.deploy(layer, open_backend("plain", options))

    close(net(x), layer(x), atol=0.02)


@torch.no_grad()
@settings(max_examples=40)
@given(layers(), TILES, REFERENCES, st.booleans(), st.booleans())
def test_devices_without_signs_get_none_and_compute_the_same(open_backend, case, tiles, references, weights, inputs):
    layer, x = case
    profile = open_backend("ideal", {**tiles, **references}).profile
    backend = UnsignedIdeal(tiles=profile.tiles, signed_weights=weights, signed_inputs=inputs)
    vectors = []
    run = backend.effective_weights
    backend.effective_weights = lambda tile: (vectors.append(tile), run(tile))[1]

    net = pimcal.deploy(layer, Device(backend, profile))

    close(net(x), layer(x))
    assert vectors


@torch.no_grad()
@settings(max_examples=60)
@given(layers(), TILES, st.sampled_from(["ideal", "plain"]), st.integers(1, 3))
def test_the_cost_is_what_the_placement_says(open_backend, case, tiles, backend, times):
    layer, x = case
    net = pimcal.deploy(layer, open_backend(backend, tiles))
    placement = net.placement.with_positions({"": vectors_of(layer, x)})

    for _ in range(times):
        net(x)

    assert net.device.cost.mvms == placement.mvms * times
    assert net.device.cost.programmed_cells >= placement.cells


def vectors_of(layer, x):
    """How many vectors a layer multiplies by each matrix, counted by what they are."""
    if isinstance(layer, nn.Linear):
        return x[..., 0].numel()
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
        return x.numel() // layer.in_channels
    return layer(x).numel() // layer.out_channels


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
@pytest.mark.parametrize("io", [{}, {"io.input_bits": 8, "io.output_bits": 8}])
def test_the_report_s_products_per_input_times_inputs_are_the_counter(open_backend, backend, io):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    net = pimcal.deploy(model, open_backend(backend, {"tiles.rows": 8, "tiles.cols": 3, **io}))
    images = torch.randn(3, 2, 5, 5)

    net(images)

    # the convolution: 9 pixels, 2 groups of 9 x 2 cut to 2 x 1; the linear layer: 36 x 3 cut to 5 x 1
    by_hand = 9 * 4 + 5
    assert net.placement.with_positions(vectors_per_input(net, images)).mvms == by_hand
    assert net.device.cost.mvms == 3 * by_hand


@torch.no_grad()
def test_programming_and_links_are_counted(open_backend):
    net = pimcal.deploy(nn.Linear(6, 4), open_backend("plain", {"device.weight_bits": 8, "device.input_bits": 8}))
    assert net.device.cost.programmed_cells == 24
    assert net.device.cost.link_bytes == 24

    net(torch.randn(5, 6))

    assert net.device.cost.link_bytes == 24 + 5 * 6 * 1 + 5 * 4 * 4  # codes of a byte, outputs as float32
    assert net.device.cost.seconds > 0


@torch.no_grad()
def test_converters_do_what_a_loop_over_products_does(open_backend):
    layer = nn.Linear(6, 4)
    x = eighths(layer, torch.randn(5, 6))
    io = {"io.input_bits": 4, "io.output_bits": 5}

    net = pimcal.deploy(layer, open_backend("ideal", {"tiles.rows": 4, **io}))

    weight, expected = layer.weight.numpy().astype(float), np.tile(layer.bias.numpy().astype(float), (5, 1))
    for image, vector in enumerate(x.numpy()):
        dac_step = np.float32(np.abs(vector).max()) / np.float32(7)
        codes = np.rint(vector / dac_step)
        for rows in (slice(0, 4), slice(4, 6)):  # two tiles
            product = (weight[:, rows] @ codes[rows]).astype(np.float32)
            adc_step = np.abs(product).max() / np.float32(15)
            expected[image] += np.rint(product / adc_step) * adc_step * dac_step
    np.testing.assert_allclose(net(x).numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("signed_weights", "largest"), [(True, 7), (False, 15)])
def test_integer_weights_do_what_a_loop_over_codes_does(open_backend, signed_weights, largest):
    layer = nn.Linear(6, 4)
    device = {"device.weight_bits": 4, "device.input_bits": 5, "device.signed_weights": signed_weights}
    x = torch.randn(5, 6)

    net = pimcal.deploy(layer, open_backend("plain", device))

    weight = layer.weight.numpy()
    unit = np.abs(weight).max() / largest
    step = np.abs(x.numpy()).max(1, keepdims=True) / 15
    expected = np.rint(x.numpy() / step) @ np.rint(weight / unit).T * unit * step + layer.bias.numpy()
    np.testing.assert_allclose(net(x).numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
@pytest.mark.parametrize("options", [{}, {"references.gain": 1}, {"io.input_bits": 8, "io.output_bits": 8}])
def test_an_empty_batch_gives_an_empty_output(open_backend, backend, options):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(36, 2))

    net = pimcal.deploy(model, open_backend(backend, options))

    assert net(torch.zeros(0, 2, 5, 5)).shape == (0, 2)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["ideal", "plain"])
def test_a_transposed_convolution_takes_the_size_of_its_output(open_backend, backend):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 3, stride=2)

        def forward(self, x):
            return self.up(x, output_size=(10, 9))

    model, x = Decoder(), torch.randn(2, 2, 4, 4)

    net = pimcal.deploy(model, open_backend(backend))

    close(net(x), model(x))


@torch.no_grad()
def test_many_patches_are_sent_in_several_pieces_with_one_result(open_backend, monkeypatch):
    layer, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(5, 2, 4, 4)
    net = pimcal.deploy(layer, open_backend("plain", {"references.gain": 1}))
    whole = net(x)

    monkeypatch.setattr("pimcal.products._CHUNK_ELEMENTS", 600)  # two samples at a time

    close(net(x), whole)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["ideal", "plain"])
@pytest.mark.parametrize("options", [{}, {"references.gain": 1, "tiles.rows": 5}, {"io.input_bits": 8}])
def test_other_precisions_give_outputs_of_their_own_type(open_backend, dtype, backend, options):
    model, x = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)), torch.randn(3, 2, 5)
    expected = model(x)

    net = pimcal.deploy(model, open_backend(backend, options)).to(dtype)

    y = net(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_the_device_gets_float32_whatever_torchs_default_is(open_backend):
    torch.set_default_dtype(torch.float64)
    try:
        model, x = nn.Linear(6, 4), torch.randn(3, 6)
        for backend, options in (("ideal", {"references.gain": 1, "tiles.rows": 4}), ("plain", {})):
            close(pimcal.deploy(model, open_backend(backend, options))(x), model(x))
    finally:
        torch.set_default_dtype(torch.float32)
