"""The demo's data: the 1,797 handwritten digits that scikit-learn brings along, split once and for all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pimcal.errors import MissingExtraError

Examples = tuple[Tensor, Tensor]

TEST_IMAGES = 600
SPLIT_SEED = 0
_MEAN, _STD = 5.0, 6.0  # of the pixels (0 paper, 16 ink), rounded


def load_digits() -> tuple[Examples, Examples]:
    """The training set (1,197 digits) and the test set (600): `((train_x, train_y), (test_x, test_y))`.

    Images are float32 `[n, 1, 8, 8]`, of mean 0 and standard deviation 1 to within 3 %, ink positive; labels
    int64 `[n]`. The first 600 of a permutation seeded with `SPLIT_SEED` are the test set, so a writer may
    be in both sets. Nothing is downloaded.

    Raises `MissingExtraError` where scikit-learn is not installed.
    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError("the demo", "scikit-learn", "demo") from error
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = torch.from_numpy((pixels - _MEAN) / _STD).float().reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    # NumPy keeps RandomState's stream fixed for ever: the shipped weights saw none of the test digits.
    order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(images)))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return (images[train], targets[train]), (images[test], targets[test])


def training() -> list[Examples]:
    """The training digits as batches, for `--calibration-data pimcal_demo.digits:training`."""
    return _batches(load_digits()[0])


def held_out() -> list[Examples]:
    """The test digits as batches, for `--data pimcal_demo.digits:held_out`."""
    return _batches(load_digits()[1])


def _batches(examples: Examples) -> list[Examples]:
    return list(zip(*(part.split(100) for part in examples), strict=True))
