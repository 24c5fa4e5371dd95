"""How a model is called with a batch, and what `calling` changes."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import pimcal
from pimcal.batches import batch_size, images_of, split_batch
from pimcal.calling import call_with, called
from pimcal.errors import UsageError
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric

CPU = torch.device("cpu")
X, Y = torch.rand(6, 5), torch.randint(0, 4, (6,))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.seen = nn.Linear(5, 4), nn.BatchNorm1d(4), []

    def run(self, x):
        return self.norm(self.layer(x))


class OneDict(Plain):
    def forward(self, batch, scale=1.0):
        return self.run(batch["image"]) * scale


class Named(Plain):
    def forward(self, image=None, scale=None):
        return self.run(image)


class Pictures(Plain):
    """A list of dicts, one an image, as detection models take them."""

    def forward(self, pictures):
        return self.run(torch.stack([picture["image"] for picture in pictures]))


class ListOfImages(Plain):
    def forward(self, images):
        assert isinstance(images, list)
        return self.run(torch.stack([image.mean((0, 1))[:5] for image in images]))


class Sequences(Plain):
    def forward(self, packed):
        padded, _ = pad_packed_sequence(packed, batch_first=True)
        return self.run(padded.sum(1))


PICTURES = [{"image": x} for x in X]
IMAGES = [torch.rand(3, 8, n) for n in (5, 6, 7, 8, 9, 5)]
PACKED = pack_sequence([torch.rand(n, 5) for n in (3, 1, 2, 4, 2, 2)], enforce_sorted=False)
CASES = {
    "one dict": (OneDict, ({"image": X}, Y), X),
    "one dict with its labels": (OneDict, {"image": X, "labels": Y}, X),
    "by name": (Named, {"image": X, "labels": Y}, X),
    "pictures": (Pictures, (PICTURES, Y), X),
    "images": (ListOfImages, (IMAGES, Y), torch.stack([image.mean((0, 1))[:5] for image in IMAGES])),
    "packed": (Sequences, (PACKED, Y), pad_packed_sequence(PACKED, batch_first=True)[0].sum(1)),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_batch_reaches_the_model_in_one_piece(open_backend, case):
    kind, batch, expected = CASES[case]
    model = kind().eval()
    net = pimcal.deploy(model, open_backend("ideal"))
    with torch.no_grad():
        outputs = model.run(expected)
    right = int((outputs.argmax(1) == Y).sum())
    found = evaluate(net, [batch], resolve_metric("accuracy"))
    assert (found.images, found.value) == (6, right / 6)
    torch.testing.assert_close(call_with(net, batch, CPU), outputs)
    bare = split_batch(batch)[0] or split_batch(batch)[1]
    assert evaluate(net, [(bare[0],) if isinstance(bare, tuple) else bare], resolve_metric("mse")).value < 1e-10
    record = pimcal.calibrate(net, [images_of(batch, 0, 3), images_of(batch, 3, 6)])
    assert record.made_with.images == 6


@pytest.mark.parametrize("batch", [PICTURES, IMAGES])
def test_a_bare_list_is_one_batch_of_images(open_backend, batch):
    model = (Pictures if batch is PICTURES else ListOfImages)().eval()
    net = pimcal.deploy(model, open_backend("ideal"))
    found = evaluate(net, [batch], resolve_metric("agreement"))
    assert (found.images, found.value) == (6, 1.0)


def test_names_that_the_model_takes_are_names_still():
    with pytest.raises(UsageError, match="unexpected keyword argument 'other'"):
        call_with(Named().eval(), {"image": X, "other": X}, CPU)


def test_a_word_says_how_a_dict_is_given(open_backend):
    class Either(Plain):
        def forward(self, image, **rest):
            return self.run(image["image"] if isinstance(image, dict) else image) + isinstance(image, dict)

    model = Either().eval()
    batch = {"image": X, "labels": Y}
    by_name, as_one = (call_with(model, called(batch, word), CPU) for word in ("keywords", "positional"))
    torch.testing.assert_close(as_one, by_name + 1)
    torch.testing.assert_close(call_with(model, called((({"image": X},), Y), "keywords"), CPU), by_name)
    assert split_batch(called(batch, "positional"))[2] is Y
    with pytest.raises(UsageError, match="hold no names"):
        called((X, Y), "keywords")
    with pytest.raises(UsageError, match="positional or keywords, or by a function, not 'other'"):
        called(batch, "other")


def test_a_function_calls_the_model_with_the_batch_as_it_is(open_backend):
    class Twice(Plain):
        def forward(self, a, *, b):
            return self.run(a + b)

    seen = []

    def calling(model, batch):
        seen.append(type(batch))
        first, second, _ = batch
        return model(first, b=second)

    model = Twice().eval()
    net = pimcal.deploy(model, open_backend("ideal"))
    batches = [(X[:2], X[:2], Y[:2]), (X[2:], X[2:], Y[2:])]
    with torch.no_grad():
        right = int((model.run(2 * X).argmax(1) == Y).sum())
    assert evaluate(net, batches, resolve_metric("accuracy"), calling=calling).value == right / 6
    record = pimcal.calibrate(net, batches, calling=calling)
    assert (record.made_with.images, set(seen)) == (6, {tuple})
    same = pimcal.calibrate(net, [{"a": a, "b": b} for a, b, _ in batches])
    assert torch.equal(record.corrections["norm"]["mean"], same.corrections["norm"]["mean"])


def test_what_the_function_raises_is_its_own_mistake():
    def calling(model, batch):
        return model(batch["nothing"])

    with pytest.raises(
        UsageError, match=r"the function that calls the model failed with KeyError.*test_calling_batches\.py:\d+"
    ):
        call_with(Named().eval(), called({"image": X}, calling), CPU)


def test_a_called_batch_is_cut_and_counted_like_its_own():
    batch = called((X, Y), lambda model, batch: model(batch[0]))
    assert batch_size(images_of(batch, 1, 4)) == 3
    assert torch.equal(call_with(nn.Identity(), images_of(batch, 1, 4), CPU), X[1:4])


# ---- the command line

OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, *, image, times):
        return self.norm(self.layer(image * times))


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(40, 5, generator=generator)
    made = Net().eval()
    with torch.no_grad():
        y = made(image=x, times=3).argmax(1)
    return [(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)]


def three_times(model, batch):
    x, _ = batch
    return model(image=x, times=3)


nothing = 3
"""


def test_the_option_names_a_function(pimcal_run, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = f"{tmp_path}/own.py"
    on = ["--profile", "ideal", "--model", f"{own}:Net", "--data", f"{own}:data", "--json"]
    done = pimcal_run("evaluate", *on, "--calling", f"{own}:three_times")
    assert (done.json["value"], done.json["images"]) == (1.0, 40)
    made = pimcal_run("calibrate", *on, "--images", "16", "--calling", f"{own}:three_times").json
    assert (made["images"], made["gate"]["images"], made["before"]) == (16, 24, 1.0)
    swept = pimcal_run("sweep", *on, "--methods", "none,paired", "--images", "16", "--calling", f"{own}:three_times")
    assert swept.json["clean"] == 1.0
    told = pimcal_run("evaluate", *on)
    assert (told.code, "--calling" in told.err) == (65, True)
    for wrong, message in (("backwards", "write positional, keywords, file.py:name"), (f"{own}:nothing", "is a int")):
        done = pimcal_run("evaluate", *on, "--calling", wrong)
        assert (done.code, message in done.err) == (2, True), done.err


IN_PLACE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 4)

    def forward(self, x):
        return self.layer(x.sub_(0.5).div_(0.25))


def batches():
    x = torch.rand(40, 5, generator=torch.Generator().manual_seed(1))
    y = Net()(x.clone()).argmax(1)
    return [(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)]


def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*map(torch.cat, zip(*batches()))), 8)
"""


@pytest.mark.parametrize("name", ["batches", "loader"])
def test_a_model_that_writes_on_its_input_writes_on_a_copy(pimcal_run, tmp_path, name):
    (tmp_path / "own.py").write_text(IN_PLACE)
    on = ["--profile", "ideal", "--model", f"{tmp_path}/own.py:Net", "--data", f"{tmp_path}/own.py:{name}", "--json"]
    assert pimcal_run("evaluate", *on).json["value"] == 1.0
    assert pimcal_run("evaluate", *on, "--metric", "mse").json["value"] < 1e-10
    assert pimcal_run("calibrate", *on, "--images", "8", "--method", "affine").json["before"] == 1.0
