"""An image file as RGB, exactly; a mode or bit depth that cannot be kept is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pimcal.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_EIGHT_BITS = frozenset(("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"))
_WITH_ALPHA = frozenset(("LA", "PA", "RGBA"))
_SIXTEEN_BITS = frozenset(("I;16", "I;16B", "I;16L", "I;16N"))
_FULL_SCALE = 65535
_CUT_TO_EIGHT = re.compile(r"\b(LA|RGB|RGBA|RGBa|RGBX|CMYK);16")  # raw modes of which Pillow keeps the high byte
_BITS, _PHOTOMETRIC = 258, 262  # TIFF's tags
_CONVERT = "convert the file, or read it in your own --data file.py:name"


def read_pixels(file: Path) -> Tensor:
    """`[3, H, W]`, turned upright as its EXIF orientation says: uint8, or float32 in 0..1 of more than 8 bits.

    Grey becomes RGB. 16 bits are divided by 65535. Alpha goes where all is opaque; colour profiles are not looked at.

    Raises:
        MissingExtraError: Pillow is not installed.
        DataError: the file is damaged, holds several frames, or cannot be converted exactly.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise MissingExtraError("imagefolder:", "Pillow", "vision") from error
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_kept(image, file)
            return _rgb(ImageOps.exif_transpose(image), file, image)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow raises anything for a damaged file
        raise DataError(f"{file} is no readable image: {error}") from error


def _check_kept(image: Any, file: Path) -> None:
    """Refuse what Pillow would cut without a word."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with a preview behind the picture itself
        raise DataError(f"{file} holds {frames} frames, and one image a file is expected; save each frame as a file")
    stored = " ".join(str(tile[3]) for tile in image.tile)
    if found := _CUT_TO_EIGHT.search(stored):
        raise _refused(file, f"{found[1]} with 16 bits a channel, of which Pillow keeps 8")
    if image.format == "PPM":
        _check_levels(image, file)
    if image.format == "TIFF" and image.mode in (*_SIXTEEN_BITS, "F"):
        _check_tiff(image, file)


def _check_levels(image: Any, file: Path) -> None:
    arguments = image.tile[0][3]
    levels = arguments[-1] if isinstance(arguments, tuple) and isinstance(arguments[-1], int) else 255
    top = _FULL_SCALE if image.mode == "I" else 255
    if levels > 1 and top % levels:  # (rawmode, 0, 1) are the arguments of what is read as it is
        raise _refused(file, f"{image.mode} with levels from 0 to {levels}")


def _check_tiff(image: Any, file: Path) -> None:
    bits, photometric = image.tag_v2.get(_BITS, (0,))[0], image.tag_v2.get(_PHOTOMETRIC)
    if bits not in (16, 32):
        raise _refused(file, f"{image.mode} with {bits} bits")
    if photometric == 0:
        raise _refused(file, f"{image.mode} whose zero is white")


def _rgb(image: Image.Image, file: Path, source: Image.Image) -> Tensor:
    mode = image.mode
    if mode in _SIXTEEN_BITS or (mode == "I" and source.format in ("PNG", "PPM")):
        if "transparency" in source.info:
            raise _refused(file, f"{mode} with a transparent level")
        return _grey(np.asarray(image).astype(np.float32) / _FULL_SCALE)
    if mode == "F":
        return _grey(_unit_range(np.array(image), file))
    if mode not in _EIGHT_BITS | _WITH_ALPHA:
        raise _refused(file, mode)
    if (mode in _WITH_ALPHA or mode == "P" or "transparency" in image.info) and _is_transparent(image):
        raise _refused(file, f"{mode} with transparent pixels, whose colour is for the background to say")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _is_transparent(image: Image.Image) -> bool:
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return bool(lowest != 255)


def _unit_range(pixels: Any, file: Path) -> Any:
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise _refused(file, f"F with values from {low:g} to {high:g}, where 0 to 1 is expected")
    return pixels


def _grey(pixels: Any) -> Tensor:
    return torch.from_numpy(pixels)[None].repeat(3, 1, 1)


def _refused(file: Path, what: str) -> DataError:
    return DataError(f"{file} is of mode {what}; it cannot become RGB exactly: {_CONVERT}")
