"""Images and labels from a NumPy archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pimcal.errors import DataError

_CHANNELS = (1, 3, 4)


def read_npz(path: Path) -> tuple[Tensor, Tensor | None]:
    """The arrays `images` and, where there is one, `labels` of an .npz file.

    Returns:
        Images `[N, C, H, W]`, uint8 as stored or float32; and integer labels `[N]` or `[N, H, W]`, or None.
        Images are stored as `[N, H, W, C]`, `[N, C, H, W]` or grey `[N, H, W]`.

    Raises:
        DataError: the file is absent or damaged, needs unpickling, lacks `images`, or holds something else.
    """
    arrays = _arrays(path)
    if "images" not in arrays:
        raise DataError(
            f"{path} has no array 'images'; it has {', '.join(map(repr, arrays)) or 'no arrays'}. "
            "Save it with numpy.savez(file, images=..., labels=...)"
        )
    images = _images(arrays["images"], path)
    labels = _labels(arrays["labels"], len(images), path) if "labels" in arrays else None
    return images, labels


def _arrays(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        with path.open("rb") as file:  # given a path, np.load leaves a damaged file open
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array; save it with numpy.savez(file, images=...)")
            wanted = {"images", "labels"} & set(archive.files)
            return {name: archive[name] if name in wanted else None for name in archive.files}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own for a damaged file
        raise DataError(f"{path} is no readable .npz of plain arrays, or is cut off: {error}") from error


def _images(array: Any, path: Path) -> Tensor:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{path}: 'images' is {array.dtype}; uint8 or floating point is expected")
    if array.size == 0:
        raise DataError(f"{path}: 'images' is empty")
    channels_first = _channels_first(array, path)
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(channels_first))
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if bad.size:
        raise DataError(f"{path}: {bad.size} of {len(array)} images hold NaN or infinities; the first is {bad[0]}")
    return torch.from_numpy(np.ascontiguousarray(channels_first, dtype=np.float32))


def _channels_first(array: Any, path: Path) -> Any:
    if array.ndim == 3:
        return array[:, None]
    last = array.ndim == 4 and array.shape[3] in _CHANNELS
    first = array.ndim == 4 and array.shape[1] in _CHANNELS
    if last and first:  # such as [N, 3, 5, 3]: decide as the files in use do
        first = array.dtype != np.uint8
    if first:
        return array
    if last:
        return array.transpose(0, 3, 1, 2)
    raise DataError(
        f"{path}: 'images' has shape {list(array.shape)}; [N, H, W, C] or [N, C, H, W] with 1, 3 or "
        "4 channels, or [N, H, W], is expected; bring other data through your own --data file.py:name"
    )


def _labels(array: Any, images: int, path: Path) -> Tensor:
    if array.dtype.kind not in "ui":
        raise DataError(f"{path}: 'labels' is {array.dtype}; class numbers (integers) are expected")
    if array.ndim not in (1, 3) or len(array) != images:
        raise DataError(
            f"{path}: 'labels' has shape {list(array.shape)}; [{images}], or [{images}, H, W] for classes of "
            "pixels, is expected"
        )
    return torch.from_numpy(array.astype(np.int64))
