"""What a batch may look like."""

from collections import namedtuple

import pytest
import torch

from pimcal.batches import batch_size, first_images, moved, split_batch, tensors_in
from pimcal.errors import DataError

X, X2, Y = torch.zeros(3, 2), torch.zeros(3, 5), torch.zeros(3)
IMAGES = [torch.zeros(2, 4, size) for size in (5, 6, 7)]  # of unequal size
BOXES = [{"box": n} for n in range(3)]
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
