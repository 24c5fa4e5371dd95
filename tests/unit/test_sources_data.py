"""Images and labels as `--data` names them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pimcal.batches import batch_size, split_batch
from pimcal.errors import DataError, MissingExtraError, UsageError
from pimcal.sources.batches import Batches
from pimcal.sources.data import load_batches
from pimcal.sources.preprocess import cifar10, imagenet, none

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(10)


def _npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "data.npz", **arrays)
    return f"npz:{folder}/data.npz"


def _all(batches: Iterable[Any]) -> tuple[torch.Tensor, list[int]]:
    parts = [split_batch(batch) for batch in batches]
    return torch.cat([x for (x,), _, _ in parts]), [int(v) for _, _, y in parts if y is not None for v in y]


# ---- npz


def test_npz_gives_all_images_and_labels_in_batches_again_and_again(tmp_path: Path) -> None:
    batches = load_batches(_npz(tmp_path, images=BYTES, labels=LABELS), batch_size=4)
    assert [batch_size(batch) for batch in batches] == [4, 4, 2]
    assert (batches.images, batches.has_labels) == (10, True)
    for _ in range(2):
        images, labels = _all(batches)
        torch.testing.assert_close(images, torch.from_numpy(BYTES.transpose(0, 3, 1, 2) / 255).float())
        assert labels == LABELS.tolist()


def test_npz_layouts_give_the_same_images(tmp_path: Path) -> None:
    last = _all(load_batches(_npz(tmp_path, images=BYTES)))[0]
    first = _all(load_batches(_npz(tmp_path, images=BYTES.transpose(0, 3, 1, 2))))[0]
    floats = _all(load_batches(_npz(tmp_path, images=BYTES.astype(np.float64) / 255)))[0]
    assert torch.equal(last, first)
    torch.testing.assert_close(last, floats)
    grey = _all(load_batches(_npz(tmp_path, images=BYTES[..., 0])))[0]
    assert torch.equal(grey, last[:, :1])


def test_npz_without_labels_yields_bare_images(tmp_path: Path) -> None:
    batches = load_batches(_npz(tmp_path, images=BYTES), images=3)
    assert not batches.has_labels
    assert [type(batch) for batch in batches] == [torch.Tensor]
    assert batches.images == 3


def test_npz_preprocess_is_applied(tmp_path: Path) -> None:
    spec = _npz(tmp_path, images=BYTES)
    raw = torch.from_numpy(BYTES.transpose(0, 3, 1, 2))
    torch.testing.assert_close(_all(load_batches(spec, cifar10, batch_size=3))[0], cifar10(raw))


def test_shared_cifar10_is_read(shared_data: Path) -> None:
    path = shared_data / "cifar10" / "test.npz"
    batches = load_batches(f"npz:{path}", cifar10, images=130)
    images, labels = _all(batches)
    with np.load(path) as archive:
        assert labels == archive["labels"][:130].tolist()
        assert images.shape == (130, 3, 32, 32)
        pixel = (archive["images"][129, 7, 9] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(images[129, :, 7, 9].numpy(), pixel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": BYTES, "y": LABELS}, r"no array 'images'; it has 'x', 'y'.*numpy\.savez"),
        ({"images": BYTES[:0]}, "'images' is empty"),
        ({"images": BYTES.astype(np.int64)}, "'images' is int64; uint8 or floating point"),
        ({"images": BYTES[0, 0]}, r"'images' has shape \[5, 3\]; \[N, H, W, C\]"),
        ({"images": RNG.random((2, 7, 5, 9))}, r"with 1, 3 or 4 channels"),
        ({"images": BYTES, "labels": LABELS[:9]}, r"'labels' has shape \[9\]; \[10\]"),
        ({"images": BYTES, "labels": LABELS / 2}, "'labels' is float64; class numbers"),
        ({"images": BYTES, "labels": LABELS[:, None]}, r"'labels' has shape \[10, 1\]"),
    ],
)
def test_npz_that_does_not_fit_says_what_is_expected(tmp_path: Path, arrays: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_batches(_npz(tmp_path, **arrays))


def test_npz_with_nan_or_infinity_names_the_image(tmp_path: Path) -> None:
    images = RNG.random((6, 3, 4, 4))
    images[2, 1, 3, 3] = np.nan
    images[5, 0, 0, 0] = np.inf
    with pytest.raises(DataError, match="2 of 6 images hold NaN or infinities; the first is 2"):
        load_batches(_npz(tmp_path, images=images))


class _RunsACommand:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_npz_with_a_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    attack = np.array([_RunsACommand(f"touch {tmp_path}/ran")], dtype=object)
    with pytest.raises(DataError, match=r"no readable \.npz of plain arrays"):
        load_batches(_npz(tmp_path, images=attack))
    assert not (tmp_path / "ran").exists()


@given(share=st.floats(0, 0.999))
def test_cut_off_npz_is_refused(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    np.savez_compressed(folder / "data.npz", images=BYTES, labels=LABELS)
    content = (folder / "data.npz").read_bytes()
    (folder / "data.npz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"data\.npz"):
        load_batches(f"npz:{folder}/data.npz")


def test_damaged_npz_is_refused_or_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", images=BYTES)
    content = (tmp_path / "data.npz").read_bytes()
    refused = 0
    for at in range(0, len(content), 7):
        (tmp_path / "data.npz").write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            load_batches(f"npz:{tmp_path}/data.npz")
        except DataError:
            refused += 1
    assert refused > len(content) // 7 * 0.8  # the rest hit fields that no reader looks at


def test_absent_file_and_single_array_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        load_batches(f"npz:{tmp_path}/absent.npz")
    np.save(tmp_path / "one.npy", BYTES)
    with pytest.raises(DataError, match="single array"):
        load_batches(f"npz:{tmp_path}/one.npy")


def test_fewer_images_than_asked_says_how_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too small: it holds 10 images, 11 were asked for"):
        load_batches(_npz(tmp_path, images=BYTES), images=11)


def test_image_shape_is_checked_after_the_preprocess(tmp_path: Path) -> None:
    spec = _npz(tmp_path, images=BYTES)
    load_batches(spec, imagenet, image_shape=(3, 224, 224))
    with pytest.raises(DataError, match=r"images are \[3, 6, 5\] after the preprocess, not \[3, 32, 32\]"):
        load_batches(spec, image_shape=(3, 32, 32))


@pytest.mark.parametrize("spec", ["data.npz", "npz:", ""])
def test_spec_of_no_kind_lists_the_kinds(spec: str) -> None:
    with pytest.raises(UsageError, match="npz:FILE, imagefolder:DIR"):
        load_batches(spec)


@pytest.mark.parametrize(("images", "batch_size"), [(0, 1), (-1, 1), (None, 0)])
def test_numbers_below_one_are_refused(tmp_path: Path, images: int | None, batch_size: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        load_batches(_npz(tmp_path, images=BYTES), images=images, batch_size=batch_size)


# ---- imagefolder


def _png(path: Path, value: int, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)


def test_class_folders_are_numbered_by_the_alphabet_and_taken_in_turn(tmp_path: Path) -> None:
    for value, name in enumerate(("zebra/1.png", "ant/1.PNG", "ant/deep/2.png", "ant/3.png", "mouse/1.png")):
        _png(tmp_path / name, 10 * value)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    batches = load_batches(f"imagefolder:{tmp_path}", batch_size=2)
    images, labels = _all(batches)
    assert labels == [0, 1, 2, 0, 0]
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [10, 40, 0, 30, 20]
    assert images.shape == (5, 3, 4, 6)


def test_flat_folder_is_unlabelled_and_grey_images_become_rgb(tmp_path: Path) -> None:
    _png(tmp_path / "b.png", 8, mode="L")
    _png(tmp_path / "a.png", 4, mode="L")
    batches = load_batches(f"imagefolder:{tmp_path}")
    assert not batches.has_labels
    assert (_all(batches)[0][:, 2, 0, 0] * 255).round().tolist() == [4, 8]


def test_images_of_unequal_size_need_a_preprocess_that_resizes(tmp_path: Path) -> None:
    for index, size in enumerate([(6, 4), (6, 4), (7, 4)]):
        _png(tmp_path / f"{index}.png", 1, size)
    batches = load_batches(f"imagefolder:{tmp_path}", batch_size=1)
    with pytest.raises(DataError, match=r"2\.png is \[3, 4, 7\].*first \[3, 4, 6\].*--preprocess"):
        list(batches)
    assert _all(load_batches(f"imagefolder:{tmp_path}", imagenet))[0].shape == (3, 3, 224, 224)


def test_damaged_image_is_named(tmp_path: Path) -> None:
    _png(tmp_path / "a.png", 1)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"b\.png is no readable image"):
        load_batches(f"imagefolder:{tmp_path}")


def test_folder_without_images_or_with_mixed_places_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        load_batches(f"imagefolder:{tmp_path}")
    with pytest.raises(DataError, match="no folder"):
        load_batches(f"imagefolder:{tmp_path}/absent")
    _png(tmp_path / "a.png", 1)
    _png(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(DataError, match="beside its class folders"):
        load_batches(f"imagefolder:{tmp_path}")


def test_missing_pillow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _png(tmp_path / "a.png", 1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pimcal\[vision\]"):
        load_batches(f"imagefolder:{tmp_path}")


def test_shared_camvid_images_are_read_as_a_flat_folder(shared_data: Path) -> None:
    pytest.importorskip("PIL")
    batches = load_batches(f"imagefolder:{shared_data}/camvid/images/val", images=3, batch_size=2)
    assert _all(batches)[0].shape == (3, 3, 180, 240)


# ---- the user's own

OWN = """
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

taken = []

def endless():
    while True:
        taken.append(1)
        yield torch.ones(4, 3, 2, 2), torch.arange(4)

class Squares(Dataset):
    def __len__(self):
        return 7
    def __getitem__(self, index):
        return torch.full((3, 2, 2), index / 7), index

loader = DataLoader(TensorDataset(torch.rand(5, 3, 2, 2)), batch_size=2)

def detection():
    images = [torch.zeros(3, 2, width) for width in (4, 5, 6)]
    return [(images, [{"box": n} for n in range(3)])] * 2

def detection_unlabelled():
    return [(images,) for images, _ in detection()]

def arrays():
    return [(np.full((2, 3, 2, 2), 255, np.uint8), [0, 1])]

def keywords():
    return [{"tokens": torch.arange(6).view(3, 2), "scale": 2.0, "labels": torch.arange(3)}] * 2

def nan_keywords():
    return [{"x": torch.tensor([[1.0], [float("nan")]])}]

def nan():
    return [torch.rand(2, 3), torch.tensor([[1.0], [float("nan")]])]

def empty():
    return []

def fails_late():
    yield torch.rand(2, 3)
    raise OSError("the disk is gone")

def triple():
    return [(1, 2, 3)]

def two_inputs():
    return [(torch.zeros(3, 2), np.ones((3, 1)), torch.arange(3))] * 2

def two_inputs_unlabelled():
    return [((torch.zeros(3, 2), torch.ones(3, 1)),)] * 2

def text():
    return ["abc"]

def number():
    return 3

def short_labels():
    return [(torch.rand(3, 2), torch.arange(2))]

def scalar_label():
    return [(torch.rand(3, 2), 1)]

def mixed():
    return [torch.rand(2, 2), (torch.rand(2, 2), torch.arange(2))]

def boxes():
    return [(torch.rand(2, 2), [{"box": 1}, {"box": 2}])] * 2

def needs(path):
    return []
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path}/own.py"


def test_endless_iterable_is_taken_only_as_far_as_needed(own: str) -> None:
    from pimcal.sources.objects import resolve

    batches = load_batches(f"{own}:endless", images=10)
    assert _all(batches)[1] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert len(resolve(f"{own}:taken").value) == 3
    assert _all(batches)[1] == _all(batches)[1]
    assert len(resolve(f"{own}:taken").value) == 9


def test_dataset_is_put_in_batches(own: str) -> None:
    batches = load_batches(f"{own}:Squares", batch_size=3)
    assert ([batch_size(batch) for batch in batches], batches.images) == ([3, 3, 1], 7)
    assert _all(batches)[1] == list(range(7))


def test_dataloader_of_single_entries_is_unlabelled(own: str) -> None:
    batches = load_batches(f"{own}:loader")
    assert (batches.images, len(list(batches)), batches.has_labels) == (5, 3, False)


def test_numpy_batches_are_taken_and_preprocessed(own: str) -> None:
    images, labels = _all(load_batches(f"{own}:arrays"))
    assert torch.equal(images, torch.ones(2, 3, 2, 2))
    assert labels == [0, 1]


def test_dict_batches_are_keyword_arguments_with_labels_apart(own: str) -> None:
    batches = load_batches(f"{own}:keywords", images=5)
    first, second = batches
    assert set(first) == {"tokens", "scale", "labels"}
    _, inputs, labels = split_batch(second)
    assert (inputs["tokens"].tolist(), inputs["scale"], labels.tolist()) == ([[0, 1], [2, 3]], 2.0, [0, 1])
    with pytest.raises(UsageError, match="yields several inputs"):
        load_batches(f"{own}:keywords", cifar10)


@pytest.mark.parametrize("name", ["two_inputs", "two_inputs_unlabelled"])
def test_several_inputs_in_order_stay_apart_and_are_cut_together(own: str, name: str) -> None:
    batches = load_batches(f"{own}:{name}", images=5)
    assert batches.has_labels == (name == "two_inputs")
    first, rest = batches.split(1)
    for part, images in ((first, [1]), (rest, [2, 2])):
        for batch, n in zip(part, images, strict=True):
            positional, _, target = split_batch(batch)
            assert [tuple(x.shape) for x in positional] == [(n, 2), (n, 1)]
            assert target is None or len(target) == n


@pytest.mark.parametrize("name", ["detection", "detection_unlabelled"])
def test_images_of_unequal_size_come_as_a_list_and_are_preprocessed_each(own: str, name: str) -> None:
    batches = load_batches(f"{own}:{name}", cifar10, images=5)
    assert (batches.images, batches.has_labels) == (5, name == "detection")
    first, rest = batches.split(1)
    for part, sizes in ((first, [[4]]), (rest, [[5, 6], [4, 5]])):
        for batch, widths in zip(part, sizes, strict=True):
            (images,), _, target = split_batch(batch)
            assert [tuple(image.shape) for image in images] == [(3, 2, width) for width in widths]
            assert all(torch.equal(image, cifar10(torch.zeros(1, 3, 2, image.shape[2]))[0]) for image in images)
            assert target is None or len(target) == len(widths)


def test_labels_may_be_anything_with_one_entry_an_image(own: str) -> None:
    batches = load_batches(f"{own}:boxes", images=3)
    assert [split_batch(batch)[2] for batch in batches] == [[{"box": 1}, {"box": 2}], [{"box": 1}]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "is empty"),
        ("triple", r"a tuple of \(int, int, int\); x, \(x, y\)"),
        ("text", "yields a str"),
        ("short_labels", "2 labels with 3 images"),
        ("scalar_label", "labels as a int"),
        ("mixed", "some batches with labels and some without"),
        ("nan_keywords", "an input holds NaN"),
    ],
)
def test_batches_that_cannot_be_used_are_refused(own: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_batches(f"{own}:{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "gives a int; an iterable"),
        ("needs", r"needs arguments \(path\)"),
        ("fails_late", r"OSError: the disk is gone \(.*own\.py:\d+\)"),
    ],
)
def test_what_gives_no_batches_is_refused(own: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(load_batches(f"{own}:{name}"))


def test_too_few_images_of_an_iterable_says_how_many(own: str) -> None:
    with pytest.raises(DataError, match="it holds 5 images, 6 were asked for"):
        load_batches(f"{own}:loader", images=6)


def test_nan_in_a_later_batch_is_found_when_it_is_read(own: str) -> None:
    batches = load_batches(f"{own}:nan")
    with pytest.raises(DataError, match=r"1 of a batch of 2 images hold NaN.*number 1"):
        list(batches)


# ---- splitting


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), data=st.data())
def test_split_keeps_every_image_once_and_in_order(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    numbers = torch.arange(total).split(sizes)
    batches = Batches.of([(x[:, None].float(), x) for x in numbers])
    if total == 1:
        with pytest.raises(DataError, match="too few"):
            batches.split(1)
        return
    n = data.draw(st.integers(1, total - 1))
    first, rest = batches.split(n)
    assert (first.images, rest.images) == (n, total - n)
    images, labels = _all(first)
    more_images, more_labels = _all(rest)
    assert labels + more_labels == list(range(total))
    assert torch.cat([images, more_images])[:, 0].tolist() == list(range(total))


@pytest.mark.parametrize("images", [10, 11])
def test_split_that_leaves_nothing_is_refused(tmp_path: Path, images: int) -> None:
    batches = load_batches(_npz(tmp_path, images=BYTES), none)
    with pytest.raises(DataError, match=f"10 images are too few to set {images} apart"):
        batches.split(images)
    with pytest.raises(UsageError, match="at least 1 image"):
        batches.split(0)


def test_in_memory_batches_outlive_their_files(tmp_path: Path) -> None:
    _png(tmp_path / "cat" / "a.png", 51)
    kept_batches = load_batches(f"imagefolder:{tmp_path}").in_memory()
    (tmp_path / "cat" / "a.png").unlink()
    images, labels = _all(kept_batches)
    assert float(images[0, 0, 0, 0]) == pytest.approx(0.2)
    assert labels == [0]
