"""Arrays as bytes: numpy's .npy format, numbers only. No pickles, and nothing is allocated that was not sent."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy

from pimcal.errors import DataError
from pimcal.shown import one_line

MOST_AXES = 32  # what every numpy has; a network's input has some five
_NAMES = b"descr", b"fortran_order", b"shape"
_TOLD = 120  # characters of a reason
KINDS = "fiu"  # floating-point numbers, integers with and without a sign
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npy(content: bytes) -> np.ndarray[Any, Any]:
    """The one array of numbers in `content`, in the machine's byte order. Raises DataError for anything else."""
    stream = io.BytesIO(content)
    shape, by_columns, dtype = _header(stream)
    if dtype.kind not in KINDS:
        raise DataError("an array must hold floating-point numbers or integers")
    _check_shape(shape, content[: stream.tell()])
    if math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise DataError(f"the body's length does not fit an array of shape {list(shape)} and type {dtype}")
    flat = np.frombuffer(content, dtype, offset=stream.tell())
    array = flat.reshape(shape, order="F" if by_columns else "C")
    return np.array(array, dtype.newbyteorder("="), order="C")


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        shape, by_columns, dtype = _HEADERS[npy.read_magic(stream)](stream)
    except KeyError as error:
        raise DataError("the body is no .npy file of version 1 or 2; write one with numpy.save") from error
    except Exception as error:  # numpy evaluates the header as a Python literal: much can come out of that
        reason = one_line(str(error) or type(error).__name__)[:_TOLD]
        raise DataError(f"the body is no .npy file of version 1 or 2 ({reason}); write one with numpy.save") from error
    return shape, by_columns, dtype


def _check_shape(shape: tuple[int, ...], header: bytes) -> None:
    """What numpy lets through, and could not make an array of, or only one that is not meant."""
    if any(header.count(name) != 1 for name in _NAMES):
        raise DataError("the array's header says something twice")
    if len(shape) > MOST_AXES:
        raise DataError(f"an array of {len(shape)} axes; at most {MOST_AXES} are taken")
    if not all(type(size) is int for size in shape):  # True is an int, too, to Python
        raise DataError(f"the array's shape {list(shape)} holds what is no number")
    if min(shape, default=1) < 1:
        raise DataError(f"an array of shape {list(shape)} holds nothing")


def write_npy(array: np.ndarray[Any, Any]) -> bytes:
    """The bytes that `read_npy` and numpy.load read."""
    stream = io.BytesIO()
    npy.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()
