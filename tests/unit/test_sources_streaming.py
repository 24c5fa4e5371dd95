"""Data is read while it is walked: one batch is held, and every walk gives the same images."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from pimcal.batches import batch_size, split_batch
from pimcal.errors import DataError, UsageError
from pimcal.sources.data import load_batches
from pimcal.sources.objects import resolve
from pimcal.sources.preprocess import cifar10

OWN = """
import itertools
import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

alive, most = 0, 0


class Noted(torch.Tensor):
    pass


class Numbers(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((3, 2, 2), index / 40), index


shuffled = DataLoader(Numbers(), batch_size=4, shuffle=True)
own_generator = DataLoader(Numbers(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))
workers = DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=2)
persistent = DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True)
weighted = DataLoader(Numbers(), batch_size=4, sampler=SubsetRandomSampler(range(40)))
zipped = DataLoader(Numbers(), batch_size=4, shuffle=True, collate_fn=lambda items: tuple(zip(*items)))
dropped = DataLoader(Numbers(), batch_size=16, drop_last=True)
filtered = DataLoader(Numbers(), batch_size=4, collate_fn=lambda items: torch.stack([x for x, y in items if y % 2]))


class Augmented(Numbers):
    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        return torch.full((3, 2, 2), index / 40) + noise, index


augmented = DataLoader(Augmented(), batch_size=4)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Numbers()[i] for i in range(40))


stream = DataLoader(Stream(), batch_size=4)


def generator():
    for first in range(0, 40, 4):
        yield torch.stack([Numbers()[i][0] for i in range(first, first + 4)]), torch.arange(first, first + 4)


once = generator()


def mapped():
    return map(lambda batch: batch, DataLoader(Numbers(), batch_size=4, shuffle=True))


def unseeded():
    draws = np.random.default_rng()
    while True:
        yield torch.from_numpy(draws.random((4, 3))).float(), torch.arange(4)


endless = itertools.cycle([(torch.zeros(4, 3), torch.arange(4))])


def lists():
    return DataLoader(TensorDataset(torch.rand(9, 4, 3), torch.rand(9, 4, 2)), batch_size=3)


def reversed_arrays():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    return [(images[:, ::-1], np.array([1, 0], dtype=">i4")), (images, np.array([1, 1]))]
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path}/own.py"


def _numbers(batches: Any) -> list[int]:
    return [int(v) for batch in batches for v in split_batch(batch)[2]]


ALL = list(range(40))


KINDS = ("shuffled", "own_generator", "workers", "persistent", "weighted", "zipped", "augmented", "stream", "generator")


def _images(batch: Any) -> torch.Tensor:
    (images,), _, _ = split_batch(batch)
    return torch.stack(images) if isinstance(images, list) else images


@pytest.mark.parametrize("name", [*KINDS, "mapped"])
def test_every_walk_gives_the_same_images_and_a_split_is_clean(own: str, name: str) -> None:
    batches = load_batches(f"{own}:{name}", tell=lambda text: None)
    first, again = list(batches), list(batches)
    assert sorted(_numbers(first)) == ALL
    assert all(torch.equal(_images(a), _images(b)) for a, b in zip(first, again, strict=True))
    assert _numbers(again) == _numbers(first)
    few, rest = batches.split(6)
    assert (_numbers(few), _numbers(rest)) == (_numbers(first)[:6], _numbers(first)[6:])


def test_the_random_numbers_outside_are_left_alone(own: str) -> None:
    before = torch.get_rng_state()
    list(load_batches(f"{own}:augmented"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "images"),
    [("shuffled", 40), ("workers", 40), ("dropped", 32), ("filtered", None), ("stream", None), ("generator", None)],
)
def test_the_number_of_images_is_known_where_it_is_sure(own: str, name: str, images: int | None) -> None:
    batches = load_batches(f"{own}:{name}", tell=lambda text: None)
    assert batches.images == images
    assert batches.count() == sum(map(batch_size, batches))


COUNTED = """
import torch

made = []


def data():
    for n in range(50):
        batch = torch.full((4, 3), float(n))
        made.append(batch)
        yield batch
        del batch
"""


def test_one_batch_is_held_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "counted.py").write_text(COUNTED)
    spec = f"{tmp_path}/counted.py:data"
    made = resolve(f"{tmp_path}/counted.py:made").value
    batches, most, alive = load_batches(spec, tell=lambda text: None), 0, []
    for batch in batches:
        alive += [weakref.ref(tensor) for tensor in made]
        made.clear()
        del batch
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) == 50
    assert most <= 2  # the one that the walk stands at, and the first


def test_a_generator_object_is_walked_once_and_says_so(own: str) -> None:
    batches = load_batches(f"{own}:once", tell=lambda text: None)
    assert _numbers(batches) == ALL
    with pytest.raises(
        UsageError, match=r"own\.py:once is a generator, which can be walked only once.* name the function"
    ):
        list(batches)


def test_data_that_changes_between_walks_is_refused(own: str) -> None:
    batches = load_batches(f"{own}:unseeded", images=40)
    list(batches)
    with pytest.raises(DataError, match=r"unseeded gives other images when it is walked again \(batch 1 "):
        list(batches)


def test_endless_data_needs_a_number(own: str) -> None:
    told: list[str] = []
    with pytest.raises(UsageError, match=r"endless never ends; say how many images to use: --images .* --held-out"):
        load_batches(f"{own}:endless")
    assert load_batches(f"{own}:endless", images=10).count() == 10
    load_batches(f"{own}:unseeded", tell=told.append)
    assert "does not say how many images it holds and is used to its end; an endless one needs a number" in told[0]
    load_batches(f"{own}:unseeded", images=3, tell=told.append)
    load_batches(f"{own}:shuffled", tell=told.append)
    assert len(told) == 1


def test_too_few_images_of_a_stream_are_told_when_it_ends(own: str) -> None:
    with pytest.raises(DataError, match="too small: it holds 40 images, 41 were asked for"):
        list(load_batches(f"{own}:generator", images=41))
    batches = load_batches(f"{own}:generator", tell=lambda text: None)
    for images in (40, 50):
        first, rest = batches.split(images)
        with pytest.raises(DataError, match=f"too few to set {images} apart"):
            _numbers(first), _numbers(rest)


def test_lists_of_a_dataloader_stand_for_tuples_whatever_their_shape(own: str) -> None:
    for batch in load_batches(f"{own}:lists"):
        (x,), _, y = split_batch(batch)
        assert (tuple(x.shape), tuple(y.shape)) == ((3, 4, 3), (3, 4, 2))


def test_arrays_of_any_layout_become_tensors(own: str) -> None:
    (turned, labels), (plain, _) = load_batches(f"{own}:reversed_arrays")
    assert torch.equal(turned, plain.flip(1))
    assert labels.tolist() == [1, 0]


def test_a_preprocess_sees_each_walk_alike(own: str) -> None:
    batches = load_batches(f"{own}:shuffled", cifar10)
    first, again = list(batches), list(batches)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))


# ---- the command line

LOADER = """
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

with np.load({data!r}) as arrays:
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])

loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)


def stream():
    yield from zip(images.split(64), labels.split(64))


once = stream()
"""


@pytest.mark.parametrize("name", ["loader", "stream"])
def test_evaluate_and_calibrate_walk_a_stream(lab: Any, pimcal_run: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "own.py").write_text(LOADER.format(data=str(lab.folder / "images.npz")))
    on = [*lab.on("ideal", data=False), "--data", f"{tmp_path}/own.py:{name}", "--json"]
    done = pimcal_run("evaluate", *on)
    assert (done.json["value"], done.json["images"]) == (1.0, 400)
    assert ("does not say how many images it holds" in done.err) == (name == "stream")
    made = pimcal_run("calibrate", *on, "--images", "32").json
    assert (made["images"], made["gate"]["images"], made["before"]) == (32, 368, 1.0)
    assert pimcal_run("sweep", *on, "--methods", "none,paired", "--images", "32").json["clean"] == 1.0


def test_a_generator_object_evaluates_and_is_refused_where_it_is_needed_twice(
    lab: Any, pimcal_run: Any, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(LOADER.format(data=str(lab.folder / "images.npz")))
    on = [*lab.on("ideal", data=False), "--data", f"{tmp_path}/own.py:once"]
    assert pimcal_run("evaluate", *on, "--json").json["images"] == 400
    resolve(f"{tmp_path}/own.py:once").value.close()
    (tmp_path / "own2.py").write_text(LOADER.format(data=str(lab.folder / "images.npz")))
    done = pimcal_run("calibrate", *on[:-1], f"{tmp_path}/own2.py:once", "--images", "32")
    assert (done.code, "can be walked only once" in done.err) == (2, True), done.err
