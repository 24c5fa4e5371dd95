"""Images from a generator, images that are no numbers, and no images at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pimcal
from pimcal.calibration.divergence import divergences
from pimcal.calibration.gate import gate, measure
from pimcal.errors import DataError
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric
from pimcal.plan import Images
from pimcal.profile import load_profile
from pimcal.recipes import parse_recipe
from pimcal.sweep import sweep
from pimcal.timeline import timeline

AGREEMENT = resolve_metric("agreement")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def model():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()


def batches(count=3):
    return [torch.randn(16, 6) for _ in range(count)]


def test_a_gate_and_its_repeats_see_the_same_images(open_backend):
    quiet = {"device.noise": "mul", "device.eta0": 0.3, "device.sigma_temporal": 0.0}
    net, held_out = pimcal.deploy(model(), open_backend("gaussian", quiet)), batches()
    record = pimcal.calibrate(net, iter(batches()))
    wanted = gate(net, record, held_out, AGREEMENT, repeats=2, max_drop=1.0)
    net.revert()
    found = gate(net, record, (x for x in held_out), AGREEMENT, repeats=2, max_drop=1.0)
    assert (found.before, found.after, found.images) == (wanted.before, wanted.after, 48)
    assert measure(net, iter(held_out), AGREEMENT, repeats=3).value == found.after
    assert divergences(net, iter(held_out)) == divergences(net, held_out)


def test_an_iterator_that_was_walked_already_is_told(open_backend):
    net, walked = pimcal.deploy(model(), open_backend("ideal")), iter(batches())
    evaluate(net, walked, AGREEMENT)
    with pytest.raises(DataError, match="no image to evaluate on; they are an iterator, which can be walked only once"):
        evaluate(net, walked, AGREEMENT)
    with pytest.raises(DataError, match=r"no image to evaluate on$"):
        evaluate(net, [], AGREEMENT)


def test_comparisons_measure_every_row_on_all_images():
    profile, data, recipes = load_profile("gaussian_mul"), batches(), [parse_recipe("none")]
    network = model()
    found = [
        [cell.value for cell in sweep(network, profile, {}, recipes, [0, 1], given, lambda recipe: [], AGREEMENT)]
        for given in (data, iter(data))
    ]
    assert found[0] == found[1]
    rows = [
        [row.value for row in timeline(network, profile, [1.0, 2.0], recipes, [0], given, lambda recipe: [], AGREEMENT)]
        for given in (data, iter(data))
    ]
    assert rows[0] == rows[1]
    images = Images(iter(data), iter(data), iter(data))
    assert [len(list(images.evaluation)) for _ in range(2)] == [3, 3]


# what a board cannot be given


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_image_that_is_no_number_is_told_by_layer_and_vectors_where_a_device_takes_integers(bad):
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)).eval()
    x = torch.randn(6, 2, 5, 5)
    x[2, 1, 0, 0] = bad  # a corner, which one kernel sees
    with pimcal.open_device("board_virtual") as device:
        net = pimcal.deploy(network, device)
        with pytest.raises(DataError, match=r"layer 0: 1 of 54 input vectors hold NaN or infinity, and .* 8 bits"):
            evaluate(net, [x], AGREEMENT)
        tokens = torch.full((4, 3, 6), 0.5)
        tokens[3, 1, 2] = bad
        deep = pimcal.deploy(nn.Sequential(nn.Identity(), nn.Linear(6, 4)), device)
        with pytest.raises(DataError, match="layer 1: 1 of 12 input vectors hold NaN"):
            deep(
                torch.full((4, 3, 6), 0.5).index_put(
                    (torch.tensor(3), torch.tensor(1), torch.tensor(2)), torch.tensor(bad)
                )
            )


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (0, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 4)), (0, 7, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 4)), (3, 0, 6)),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten()),
            (0, 2, 5, 5),
        ),
        (lambda: nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.Conv2d(4, 2, 3)), (0, 2, 5, 5)),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (0, 5, 8)),
    ],
)
@pytest.mark.parametrize("references", [0, 1])
@pytest.mark.parametrize("profile", ["ideal", "gaussian_mul", "gaussian_8bit", "aihwkit_pcm", "board_virtual"])
def test_an_empty_batch_gives_what_the_model_itself_gives(profile, references, layers, shape):
    if profile.startswith("aihwkit"):
        pytest.importorskip("aihwkit")
    network = layers().eval()
    overrides = {"references.offset": references, "references.gain": references}
    with pimcal.open_device(profile, overrides) as device:
        net = pimcal.deploy(network, device)
        before = device.cost.mvms
        found, wanted = net(torch.zeros(shape)), network(torch.zeros(shape))
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        assert device.cost.mvms == before
