"""Arrays as bytes: numpy's .npy format, numbers only. No pickles, and nothing is allocated that was not sent."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy

from pimcal.errors import DataError

KINDS = "fiu"  # floating-point numbers, integers with and without a sign
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npy(content: bytes) -> np.ndarray[Any, Any]:
    """The one array of numbers in `content`, in the machine's byte order. Raises DataError for anything else."""
    stream = io.BytesIO(content)
    shape, by_columns, dtype = _header(stream)
    if dtype.kind not in KINDS:
        raise DataError("an array must hold floating-point numbers or integers")
    if min(shape, default=1) < 1:
        raise DataError(f"an array of shape {list(shape)} holds nothing")
    if math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise DataError(f"the body's length does not fit an array of shape {list(shape)} and type {dtype}")
    flat = np.frombuffer(content, dtype, offset=stream.tell())
    array = flat.reshape(shape, order="F" if by_columns else "C")
    return np.array(array, dtype.newbyteorder("="), order="C")


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        shape, by_columns, dtype = _HEADERS[npy.read_magic(stream)](stream)
    except Exception as error:  # numpy evaluates the header as a Python literal: much can come out of that
        raise DataError("the body is no .npy file of version 1 or 2; write one with numpy.save") from error
    return shape, by_columns, dtype


def write_npy(array: np.ndarray[Any, Any]) -> bytes:
    """The bytes that `read_npy` and numpy.load read."""
    stream = io.BytesIO()
    npy.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()
