"""From decoded images to the network's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pimcal.errors import DataError, UsageError
from pimcal.sources.preprocess import cifar10, imagenet, load_preprocess, none

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def _images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_none_scales_bytes_and_leaves_other_numbers() -> None:
    images = _images(2, 3, 4, 4)
    assert torch.allclose(none(images), torch.from_numpy(images.numpy() / 255).float())
    floats = torch.tensor([[-3.0, 7.0]], dtype=torch.float64)
    assert none(floats).dtype == torch.float32
    assert torch.equal(none(floats), floats.float())
    indices = torch.tensor([[5, 6]])
    assert torch.equal(none(indices), indices)


def test_cifar10_standardises_by_channel() -> None:
    images = _images(3, 3, 5, 4)
    expected = (images.numpy().transpose(0, 2, 3, 1) / 255 - MEAN) / STD
    np.testing.assert_allclose(cifar10(images).numpy().transpose(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-5)


def test_bytes_and_their_fractions_give_the_same() -> None:
    images = _images(2, 3, 9, 9)
    torch.testing.assert_close(cifar10(images), cifar10(images / 255))
    torch.testing.assert_close(imagenet(images), imagenet(images / 255))


@given(height=st.integers(20, 600), width=st.integers(20, 600))
def test_imagenet_gives_224_square_for_any_size(height: int, width: int) -> None:
    colour = torch.tensor([255, 0, 51], dtype=torch.uint8)
    result = imagenet(colour.view(1, 3, 1, 1).expand(1, 3, height, width))
    assert result.shape == (1, 3, 224, 224)
    expected = torch.tensor((np.array([1.0, 0.0, 0.2]) - MEAN) / STD, dtype=torch.float32)
    torch.testing.assert_close(result, expected.view(1, 3, 1, 1).expand_as(result), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (100, 133)])
def test_imagenet_equals_torchvisions_evaluation_transform(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    images = _images(1, 3, *size)
    reference = transforms.Compose(
        [
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Resize(256, antialias=True),
            transforms.CenterCrop(224),
            transforms.Normalize(MEAN.tolist(), STD.tolist()),
        ]
    )
    torch.testing.assert_close(imagenet(images), reference(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preprocess", [cifar10, imagenet])
def test_standardised_or_grey_images_are_refused(preprocess: object) -> None:
    assert callable(preprocess)
    with pytest.raises(DataError, match="standardised already, use --preprocess none"):
        preprocess(torch.full((1, 3, 8, 8), -0.5))
    with pytest.raises(DataError, match=r"\[N, 3, H, W\]; these are \[1, 1, 8, 8\]"):
        preprocess(_images(1, 1, 8, 8))


def test_unknown_preprocess_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'imagenet'"):
        load_preprocess("imagnet")


def test_own_preprocess_is_used_and_checked(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def half(images):\n    return images / 2\n"
        "def first(images):\n    return images[:1]\n"
        "def array(images):\n    return images.numpy()\n"
        "def fails(images):\n    return images @ images\n"
        "table = 3\n"
    )
    own = f"{tmp_path}/own.py"
    assert torch.equal(load_preprocess(f"{own}:half")(torch.ones(2, 3)), torch.full((2, 3), 0.5))
    for name, message in (
        ("first", r"made \[1, 3\] of 2 images"),
        ("array", "returned a ndarray"),
        ("fails", r"RuntimeError: .*own\.py:8\)"),
    ):
        function = load_preprocess(f"{own}:{name}")
        with pytest.raises(UsageError, match=message):
            function(torch.ones(2, 3))
    with pytest.raises(UsageError, match="is a int, not a function"):
        load_preprocess(f"{own}:table")
