"""Matrices of whole numbers in .npy files, as `pimcal board` reads, compares and writes them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from pimcal.errors import DataError, DeviceUnavailableError
from pimcal.files import open_regular, write_atomically
from pimcal_serial.inputs import Int8s, Int32s
from pimcal_serial.messages import BoardInfo


def read_codes(path: Path) -> Int8s:
    """An .npy file's matrix of whole numbers. Raises DataError."""
    try:
        with open_regular(path) as file:
            values = np.load(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no .npy file of numbers; write one with numpy.save") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or not values.size:
        raise DataError(f"{path} holds no matrix")
    if values.dtype.kind not in "biuf" or not np.array_equal(values, np.clip(np.trunc(values), -128, 127)):
        raise DataError(f"{path} holds values that are no whole numbers of 8 bits")
    return np.ascontiguousarray(values.astype(np.int8))


def check_fit(path: Path, weights: Int8s, board: BoardInfo) -> None:
    """Raise DataError where a file's weights are larger than a tile."""
    rows, cols = weights.shape
    if rows > board.rows or cols > board.cols:
        raise DataError(f"{path}: weights of {rows} x {cols} do not fit a tile of {board.rows} x {board.cols}")


def check_same(tile: int, written: Int8s, held: Int8s) -> None:
    """Raise DeviceUnavailableError where a tile holds other weights than were written."""
    where = np.argwhere(held != written)
    if len(where):
        row, col = where[0]
        raise DeviceUnavailableError(
            f"tile {tile} holds other weights than were written: {len(where)} of {written.size} differ, the first in "
            f"row {row}, column {col} ({held[row, col]} for {written[row, col]}); see its self-test: pimcal board info"
        )


def write_array(path: Path, values: Int8s | Int32s) -> None:
    """An .npy file. Raises StorageError."""
    content = io.BytesIO()
    np.save(content, values)
    write_atomically(path, content.getvalue())
