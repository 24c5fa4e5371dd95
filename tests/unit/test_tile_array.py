"""What is on the tiles: streaming, several networks on one device, interrupted programming."""

import copy
import itertools
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pimcal
from pimcal.device import Device
from pimcal.errors import ConfigError
from pimcal.ideal import Ideal

SMALL = {"tiles.count": 1, "tiles.rows": 12, "tiles.cols": 10}
FIVE = {"tiles.count": 2, "tiles.rows": 6, "tiles.cols": 6}  # for five layers of a tile each


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
@pytest.mark.parametrize("options", [{}, {"tiles.rows": 8, "tiles.cols": 8, "tiles.count": 12}])
def test_two_networks_on_one_device_have_tiles_of_their_own(open_backend, options):
    device = open_backend("ideal", options)
    models, x = (network(), network()), torch.randn(4, 6)
    nets = [pimcal.deploy(model, device) for model in models]
    cells = device.cost.programmed_cells

    for model, net in (*zip(models, nets, strict=True), *zip(models, nets, strict=True)):
        torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-5)
    assert not {*nets[0].array.resident} & {*nets[1].array.resident}
    assert device.cost.programmed_cells == cells


@pytest.mark.parametrize("options", [SMALL, FIVE])
def test_a_second_network_that_does_not_fit_is_refused_before_anything_is_programmed(open_backend, options):
    device, x = open_backend("ideal", options), torch.randn(4, 6)
    first = pimcal.deploy(network(), device)
    cells, resident = device.cost.programmed_cells, dict(device.resident)

    with pytest.raises(ConfigError, match=r"more tiles than are free: .* hold \d of the device's \d; call release\(\)"):
        pimcal.deploy(network(), device)

    assert device.cost.programmed_cells == cells
    assert device.resident == resident
    first.release()
    model = network()
    torch.testing.assert_close(pimcal.deploy(model, device)(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_network_that_nobody_uses_any_more_gives_its_tiles_back(open_backend):
    device = open_backend("ideal", SMALL)
    net = pimcal.deploy(network(), device)
    del net

    pimcal.deploy(network(), device)


@torch.no_grad()
@pytest.mark.parametrize("options", [SMALL, FIVE, FIVE | {"tiles.count": 5, "references.gain": 1}])
def test_a_copy_knows_which_load_the_other_left_on_the_device(open_backend, options):
    model, x = network(), torch.randn(4, 6)
    net = pimcal.deploy(model, open_backend("ideal", options))
    twin = copy.deepcopy(net)

    for one in (net, twin, net):  # each leaves the last load on the tiles
        torch.testing.assert_close(one(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(net)(x), model(x), rtol=1e-4, atol=1e-5)


# streaming


class Streaming(Ideal):
    """Tells what is asked of it. What is programmed ahead is there only when its tile is used, garbage until then."""

    def __init__(self, profile, *, effective=True):
        super().__init__(profile.settings, profile.tiles)
        self._capabilities = replace(self._capabilities, effective_weights=effective)
        self.calls = []
        self._late = {}

    def of(self, *kinds):
        return [tile for kind, tile in self.calls if kind in kinds]

    def program(self, tile, weights):
        self.calls.append(("program", tile))
        self._late.pop(tile, None)
        super().program(tile, weights)

    def program_ahead(self, tile, weights):
        self.calls.append(("ahead", tile))
        self._late[tile] = weights.clone()
        super().program(tile, torch.full_like(weights, 999.0))

    def effective_weights(self, tile):
        self.calls.append(("use", tile))
        if tile in self._late:
            super().program(tile, self._late.pop(tile))
        return super().effective_weights(tile)


def streaming(open_backend, model, options, **kinds):
    """A deployed network, and the backend under it."""
    profile = open_backend("ideal", options).profile
    backend = Streaming(profile, **kinds)
    return pimcal.deploy(model, Device(backend, profile)), backend


def whole(model):
    """The model with small integers for weights, so that sums of products are exact in whatever order."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
    return model


def five():
    return whole(nn.Sequential(*[nn.Linear(6, 6) for _ in range(5)]))


@st.composite
def networks(draw):
    """Two or three layers, the first of them a convolution of some groups; and an input."""
    groups = draw(st.sampled_from([1, 2, 3, 6]))
    per_group, length = draw(st.integers(1, 3)), draw(st.integers(3, 4))
    kernel = draw(st.sampled_from([1, 3]))
    conv = nn.Conv1d(6, groups * per_group, kernel, groups=groups)
    size = groups * per_group * (length - kernel + 1)
    widths = [size, *draw(st.lists(st.integers(1, 9), min_size=1, max_size=2))]
    linears = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), *linears)
    return whole(model), torch.randint(-4, 5, (2, 6, length)).float()


TILES = st.fixed_dictionaries(
    {"tiles.count": st.integers(1, 4), "tiles.rows": st.integers(2, 9), "tiles.cols": st.integers(3, 9)}
)
REFERENCES = st.sampled_from([{}, {"references.offset": 1, "references.gain": 1}])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the model did not call")
@settings(max_examples=50)
@given(networks(), TILES, REFERENCES, st.booleans())
def test_a_streamed_network_is_exact_whatever_it_is_cut_into(open_backend, case, tiles, references, effective):
    model, x = case
    net, _ = streaming(open_backend, model, tiles | references, effective=effective)

    for _ in range(2):
        assert torch.equal(net(x), model(x))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the model did not call")
@settings(max_examples=50)
@given(networks(), TILES, st.sampled_from([{}, {"device.signed_inputs": False, "device.signed_weights": False}]))
def test_a_streamed_network_is_as_good_as_one_that_fits_on_a_device_of_integers(open_backend, case, tiles, signs):
    model, x = case
    options = {**tiles, **signs, "device.weight_bits": 3, "device.input_bits": 4}

    fits = pimcal.deploy(model, open_backend("plain", options | {"tiles.count": None}))
    streamed = pimcal.deploy(model, open_backend("plain", options))

    assert fits.placement.loads == 1
    for _ in range(2):
        assert torch.equal(streamed(x), fits(x))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the model did not call")
@settings(max_examples=50)
@given(networks(), TILES, REFERENCES, st.booleans())
def test_each_tile_is_programmed_once_for_each_of_its_turns(open_backend, case, tiles, references, effective):
    model, x = case
    net, backend = streaming(open_backend, model, tiles | references, effective=effective)
    turns = Counter(tile for _, tile in net.array.layouts)

    assert Counter(backend.of("program")) == Counter(tile for load, tile in net.array.layouts if load == 0)
    net(x)
    assert Counter(backend.of("program", "ahead")) == turns
    for _ in range(2):  # what has a tile of its own stays there
        backend.calls.clear()
        net(x)
        assert Counter(backend.of("program", "ahead")) == {tile: n for tile, n in turns.items() if n > 1}


@torch.no_grad()
@pytest.mark.parametrize("effective", [True, False])
def test_the_next_tile_is_programmed_before_the_products_of_the_one_before_it(open_backend, effective):
    net, backend = streaming(open_backend, five(), FIVE, effective=effective)
    backend.calls.clear()
    x = torch.randn(3, 6)

    net(x)
    assert backend.calls == [
        ("use", 0), ("ahead", 0), ("use", 1), ("ahead", 1), ("use", 0), ("ahead", 0), ("use", 1), ("use", 0)
    ]  # fmt: skip

    backend.calls.clear()
    net(x)  # a pass begins with a tile that nothing could be done for; the last one still has the fourth layer
    assert backend.calls[:4] == [("program", 0), ("ahead", 1), ("use", 0), ("ahead", 0)]
    assert backend.of("program") == [0]


@torch.no_grad()
def test_on_a_single_tile_nothing_can_be_programmed_ahead(open_backend):
    model, x = five(), torch.randint(-3, 4, (3, 6)).float()
    net, backend = streaming(open_backend, model, FIVE | {"tiles.count": 1})

    for _ in range(2):
        assert torch.equal(net(x), model(x))
    assert backend.of("ahead") == []
    assert len(backend.of("program")) == 10


@torch.no_grad()
def test_only_what_a_layer_needs_is_programmed_before_its_products(open_backend):
    model = whole(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 24), nn.Linear(24, 6)))
    net, backend = streaming(open_backend, model, FIVE | {"tiles.count": 4}, effective=False)
    backend.calls.clear()

    net(torch.randint(-3, 4, (2, 6)).float())

    assert backend.calls == [
        ("ahead", 1), ("ahead", 2), ("ahead", 3), ("use", 0),
        ("ahead", 0), ("use", 1), ("use", 2), ("use", 3), ("use", 0),
        ("program", 1), ("ahead", 2), ("ahead", 3), ("ahead", 0), ("use", 1), ("use", 2), ("use", 3), ("use", 0),
    ]  # fmt: skip


@torch.no_grad()
def test_a_layer_larger_than_the_device_makes_room_for_its_own_next_parts(open_backend):
    model, x = whole(nn.Sequential(nn.Linear(6, 24))), torch.randint(-3, 4, (2, 6)).float()
    net, backend = streaming(open_backend, model, FIVE)
    backend.calls.clear()

    assert torch.equal(net(x), model(x))
    assert backend.calls == [("use", 0), ("ahead", 0), ("use", 1), ("ahead", 1), ("use", 0), ("use", 1)]


class Calls(nn.Module):
    """Calls its layers in an order of its own."""

    def __init__(self, order, count=5):
        super().__init__()
        self.layers = whole(nn.ModuleList(nn.Linear(6, 6) for _ in range(count)))
        self.order = order

    def forward(self, x):
        for i in self.order:
            x = self.layers[i](x).clamp(-9, 9)
        return x


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the model did not call")
@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from([None, 0, 2]),
)
def test_layers_may_be_called_in_any_order_left_out_and_called_again(open_backend, orders, count, tied):
    model, x = Calls([]), torch.randint(-3, 4, (2, 6)).float()
    if tied is not None:
        model.layers[4].weight = model.layers[tied].weight
    net, _ = streaming(open_backend, model, FIVE | {"tiles.count": count})

    for order in orders:
        net.module.order = model.order = order
        assert torch.equal(net(x), model(x))


@torch.no_grad()
def test_a_layer_called_several_times_in_a_row_is_programmed_once(open_backend):
    model, x = Calls([0, 0, 1, 1, 1, 2, 2, 3, 4, 4]), torch.randint(-3, 4, (2, 6)).float()
    net, backend = streaming(open_backend, model, FIVE)

    assert torch.equal(net(x), model(x))
    assert len(backend.of("program", "ahead")) == 5


@torch.no_grad()
def test_a_network_that_comes_back_to_earlier_layers_is_not_programmed_ahead_again(open_backend):
    model, x = Calls(range(5)), torch.randint(-3, 4, (2, 6)).float()
    net, backend = streaming(open_backend, model, FIVE)
    net(x)

    net.module.order = model.order = [0, 1, 0, 1, 2, 3]
    for _ in range(3):
        backend.calls.clear()
        assert torch.equal(net(x), model(x))
    assert backend.of("ahead") == []
    assert len(backend.of("program")) == 4


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the model did not call")
@pytest.mark.parametrize(("order", "count", "programmed"), [([0, 1, 3, 4], 1, 4), ([0, 4], 3, 0)])
def test_layers_that_are_not_called_have_no_tiles_once_that_is_known(open_backend, order, count, programmed):
    model, x = Calls(order), torch.randint(-3, 4, (2, 6)).float()
    net, backend = streaming(open_backend, model, FIVE | {"tiles.count": count})
    net(x)
    net(x)
    backend.calls.clear()

    assert torch.equal(net(x), model(x))
    assert len(backend.of("program", "ahead")) == programmed
    assert [row.name for row in net.placement.layers if row.on_device] == [f"layers.{i}" for i in order]


@torch.no_grad()
def test_tied_layers_share_a_tile_that_stays_until_the_last_of_them(open_backend):
    model, x = whole(nn.Sequential(*[nn.Linear(6, 6) for _ in range(5)])), torch.randint(-3, 4, (2, 6)).float()
    model[1].weight = model[0].weight
    net, backend = streaming(open_backend, model, FIVE)

    assert torch.equal(net(x), model(x))
    assert len(backend.of("program", "ahead")) == 4


@torch.no_grad()
@pytest.mark.parametrize("method", ["paired", "affine"])
def test_a_calibration_programs_each_tile_once_for_all_batches(open_backend, method):
    layers = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(5)]
    model, batches = nn.Sequential(*layers).eval(), [torch.randn(4, 6) for _ in range(3)]
    net, backend = streaming(open_backend, model, FIVE)

    pimcal.calibrate(net, batches, method)

    assert len(backend.of("program", "ahead")) == 5
    backend.calls.clear()
    net(batches[0])
    assert len(backend.of("ahead")) == 4  # it goes on doing so


@torch.no_grad()
def test_a_calibration_of_a_layer_larger_than_the_device_gives_what_it_gives_on_a_large_one(open_backend):
    batches = [torch.randn(8, 6) for _ in range(3)]
    model = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 8), nn.BatchNorm1d(8)).eval()
    fits, streamed = (pimcal.deploy(model, open_backend("ideal", options)) for options in ({}, FIVE))

    for net in (fits, streamed):
        net.apply(pimcal.calibrate(net, batches, "pooled"))

    torch.testing.assert_close(streamed(batches[0]), fits(batches[0]), rtol=1e-4, atol=1e-5)


# what goes wrong


class Interrupted(Streaming):
    """Leaves a tile half-written at one of its programmings."""

    left, broken = -1, None

    def _write(self, write, tile, weights):
        self.left -= 1
        if self.left:
            return write(tile, weights)
        self._late.pop(tile, None)
        Ideal.program(self, tile, torch.full_like(weights, 999.0))
        self.broken = tile
        raise KeyboardInterrupt

    def program(self, tile, weights):
        self._write(super().program, tile, weights)

    def program_ahead(self, tile, weights):
        self._write(super().program_ahead, tile, weights)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the model did not call")
@settings(max_examples=50)
@given(networks(), TILES, st.integers(1, 12))
def test_a_tile_whose_programming_was_interrupted_is_programmed_again(open_backend, case, tiles, left):
    model, x = case
    profile = open_backend("ideal", tiles).profile
    backend = Interrupted(profile)
    net = pimcal.deploy(model, Device(backend, profile))

    backend.left = left
    with suppress(KeyboardInterrupt):
        for _ in range(2):
            net(x)
    backend.left = -1

    assert backend.broken not in net.array.resident
    assert torch.equal(net(x), model(x))
