"""What a batch may look like."""

from collections import namedtuple

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence, unpack_sequence

from pimcal.batches import batch_size, first_images, images_of, moved, split_batch, tensors_in
from pimcal.errors import DataError

X, X2, Y = torch.zeros(3, 2), torch.zeros(3, 5), torch.zeros(3)
IMAGES = [torch.zeros(2, 4, size) for size in (5, 6, 7)]  # of unequal size
BOXES = [{"box": n} for n in range(3)]
COLOUR = [torch.zeros(3, 4, size) for size in (5, 6, 7)]
PICTURES = [{"image": torch.zeros(3, 4, 4), "height": n} for n in range(3)]
PACKED = pack_sequence([torch.arange(2.0 * n).view(n, 2) for n in (2, 4, 3)], enforce_sorted=False)
NAMED, TEXTS = {"a": X}, ["one", "two", "three"]
Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("batch", "args", "kwargs", "target"),
    [
        (X, (X,), {}, None),
        ((X,), (X,), {}, None),
        ([X], (X,), {}, None),
        ((X, Y), (X,), {}, Y),
        ([X, Y], (X,), {}, Y),
        ((X, X2, Y), (X, X2), {}, Y),
        (((X, X2), Y), (X, X2), {}, Y),
        (((X, X2),), (X, X2), {}, None),
        ({"a": X, "b": X2}, (), {"a": X, "b": X2}, None),
        ({"a": X, "labels": Y}, (), {"a": X}, Y),
        ({"a": X, "target": Y}, (), {"a": X}, Y),
        (({"a": X}, Y), (), {"a": X}, Y),
        ([[X, X2], Y], (X, X2), {}, Y),
        ([[X, X2]], (X, X2), {}, None),
        ((IMAGES, BOXES), (IMAGES,), {}, BOXES),
        ((IMAGES,), (IMAGES,), {}, None),
        ((IMAGES, X, Y), (IMAGES, X), {}, Y),
        ({"images": IMAGES, "targets": BOXES}, (), {"images": IMAGES}, BOXES),
        (COLOUR, (COLOUR,), {}, None),
        ([COLOUR, BOXES], (COLOUR,), {}, BOXES),
        ([COLOUR], (COLOUR,), {}, None),
        (PICTURES, (PICTURES,), {}, None),
        ((PICTURES, Y), (PICTURES,), {}, Y),
        ([PICTURES, Y], (PICTURES,), {}, Y),
        (PACKED, (PACKED,), {}, None),
        ((PACKED, Y), (PACKED,), {}, Y),
        (((PACKED, X), Y), (PACKED, X), {}, Y),
        ({"x": PACKED, "y": Y}, (), {"x": PACKED}, Y),
        (((NAMED,), Y), (NAMED,), {}, Y),
        ((TEXTS, Y), (TEXTS,), {}, Y),
    ],
)
def test_inputs_and_target_are_told_apart(batch, args, kwargs, target):
    found_args, found_kwargs, found_target = split_batch(batch)

    assert [id(value) for value in found_args] == [id(value) for value in args]
    assert {key: id(value) for key, value in found_kwargs.items()} == {key: id(value) for key, value in kwargs.items()}
    assert found_target is target
    assert batch_size(batch) == 3


def test_a_batch_itself_is_not_changed():
    batch = {"a": X, "labels": Y}

    split_batch(batch)

    assert set(batch) == {"a", "labels"}


def test_an_empty_tuple_is_refused():
    with pytest.raises(DataError, match=r"give x, \(x, y\) or a dict"):
        split_batch(())


@pytest.mark.parametrize("batch", ["images", 3, {"a": 1}, {"labels": Y}, ((), Y)])
def test_a_batch_without_a_tensor_is_refused(batch):
    with pytest.raises(DataError, match="holds no tensor"):
        batch_size(batch)


def test_tensors_are_found_in_any_structure():
    nested = {"a": [X, (Y, "text")], "b": Pair(X2, None)}

    assert [id(tensor) for tensor in tensors_in(nested)] == [id(X), id(Y), id(X2)]


def test_moving_keeps_the_structure_and_its_types():
    nested = {"a": [X, (Y, "text")], "b": Pair(X2, None)}

    found = moved(nested, torch.device("meta"))

    assert isinstance(found["a"], list)
    assert isinstance(found["a"][1], tuple)
    assert isinstance(found["b"], Pair)
    assert {tensor.device.type for tensor in tensors_in(found)} == {"meta"}
    assert found["a"][1][1] == "text"


def test_the_first_images_keep_the_form_of_the_batch():
    batch = {"a": X, "pair": (X2, [X]), "scale": torch.ones(()), "table": torch.zeros(7, 2), "labels": Y}

    found = first_images(batch, 2)

    assert found["a"].shape == (2, 2)
    assert found["pair"][0].shape == (2, 5)
    assert found["pair"][1][0].shape == (2, 2)
    assert found["labels"].shape == (2,)
    assert found["table"].shape == (7, 2)
    assert found["scale"].shape == ()
    assert first_images(batch, 3) is batch


@pytest.mark.parametrize(
    "batch",
    [(IMAGES, BOXES), (IMAGES,), {"images": IMAGES, "targets": BOXES}, ((IMAGES, X), BOXES), ({"images": IMAGES}, Y)],
)
def test_a_list_of_images_is_cut_and_moved_as_a_list(batch):
    first = moved(first_images(batch, 2), torch.device("meta"))

    args, kwargs, target = split_batch(first)
    images = kwargs["images"] if kwargs else args[0]
    assert [tuple(image.shape) for image in images] == [(2, 4, 5), (2, 4, 6)]
    assert {image.device.type for image in images} == {"meta"}
    assert target is None or len(target) == 2
    assert batch_size(first) == 2


def test_the_first_images_of_what_a_dataloader_gives_are_cut_together():
    pairs = [((torch.zeros(2), torch.zeros(5)), 1)] * 3
    batch = next(iter(torch.utils.data.DataLoader(pairs, 3)))

    args, _, target = split_batch(first_images(batch, 2))

    assert [tuple(x.shape) for x in args] == [(2, 2), (2, 5)]
    assert target.shape == (2,)


def test_a_list_of_as_many_inputs_as_images_is_not_mistaken_for_images():
    args, _, target = split_batch(first_images([X, X2, Y], 2))

    assert [len(x) for x in (*args, target)] == [2, 2, 2]


def test_tuples_of_images_and_targets_stand_for_lists():
    images, targets = zip(*((image, {"box": n}) for n, image in enumerate(COLOUR)), strict=True)

    (found,), kwargs, target = split_batch((images, targets))

    assert ([id(image) for image in found], kwargs, target) == ([id(image) for image in COLOUR], {}, list(targets))
    cut, _, rest = split_batch(images_of((images, targets), 1, 3))
    assert ([tuple(image.shape) for image in cut[0]], rest) == ([(3, 4, 6), (3, 4, 7)], [{"box": 1}, {"box": 2}])


@pytest.mark.parametrize("sort", [True, False])
def test_packed_sequences_are_cut_and_moved_whole(sort):
    lengths = (4, 3, 2) if sort else (2, 4, 3)
    sequences = [torch.rand(n, 2) for n in lengths]
    batch = (pack_sequence(sequences, enforce_sorted=sort), Y)

    (found,), _, target = split_batch(images_of(batch, 1, 3))

    assert isinstance(found, PackedSequence)
    assert all(torch.equal(a, b) for a, b in zip(unpack_sequence(found), sequences[1:], strict=True))
    assert len(target) == 2
    lstm = torch.nn.LSTM(2, 3)
    outputs, _ = pad_packed_sequence(lstm(batch[0])[0])
    parts, _ = pad_packed_sequence(lstm(found)[0])
    torch.testing.assert_close(parts, outputs[: len(parts), 1:])
    (elsewhere,), _, _ = split_batch(moved(batch, torch.device("meta")))
    assert isinstance(elsewhere, PackedSequence)
    assert elsewhere.data.device.type == "meta"


def test_a_list_of_dicts_is_cut_by_images_and_moved_within():
    found = images_of((PICTURES, Y), 1, 2)

    assert [picture["height"] for picture in found[0]] == [1]
    assert moved(found, torch.device("meta"))[0][0]["image"].device.type == "meta"


class Graphs:
    """As graph libraries have their batches."""

    def __init__(self, device="cpu"):
        self.device = device

    def to(self, device):
        return Graphs(str(device))


def test_objects_of_other_libraries_are_moved_and_counted_by_their_target():
    batch = (Graphs(), Y)

    assert batch_size(batch) == 3
    assert moved(batch, torch.device("meta"))[0].device == "meta"
    assert images_of(batch, 0, 3) is batch
    with pytest.raises(DataError, match="a batch holds a Graphs, which cannot be cut"):
        images_of(batch, 0, 2)


def test_numbers_without_a_batch_axis_do_not_tell_the_images():
    assert batch_size({"scale": torch.tensor(2.0), "x": X}) == 3


@pytest.mark.parametrize("batch", [[X, Y], [torch.zeros(5, 2, 2), torch.zeros(5, 3, 3)], [X[None], Y]])
def test_other_lists_stand_for_tuples(batch):
    args, kwargs, target = split_batch(batch)

    assert (args[0] is batch[0], kwargs, target is batch[1]) == (True, {}, True)
