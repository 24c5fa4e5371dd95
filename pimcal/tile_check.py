"""Checks that backends share: are codes wide enough, does a tile exist, do weights fit it, do inputs fit those."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from pimcal.errors import ConfigError, DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from pimcal.backend import Capabilities
    from pimcal.patches import TilePart


class Tiles(Protocol):
    """A profile's `tiles:` part: how many tiles of which size. `None` means without limit."""

    @property
    def count(self) -> int | None: ...
    @property
    def rows(self) -> int | None: ...
    @property
    def cols(self) -> int | None: ...


def check_capabilities(device: Capabilities) -> None:
    """Raise ConfigError for signed codes of 1 bit: their range is symmetric, so that only 0 would be left."""
    codes = (
        ("weights", device.weight_bits, device.signed_weights),
        ("inputs", device.input_bits, device.signed_inputs),
    )
    for what, bits, signed in codes:
        least = 2 if signed else 1
        if bits is not None and bits < least:
            kind = "signed" if signed else "unsigned"
            raise ConfigError(
                f"{device.identity} announces {kind} {what} of {bits} bits; at least {least} are needed. "
                "Correct its capabilities, or the setting that they come from"
            )


def check_weights(device: Capabilities, tile: int, weights: Tensor) -> None:
    """Refuse weights ([rows, cols]) that `tile` cannot hold.

    Raises:
        ConfigError: the device has no such tile, or the weights are larger than one.
        DataError: they are no matrix, empty, or not finite.
    """
    if tile < 0 or (device.tiles is not None and tile >= device.tiles):
        known = "tiles count from 0" if device.tiles is None else f"its tiles are 0 to {device.tiles - 1}"
        raise ConfigError(f"{device.identity} has no tile {tile}: {known}")
    if weights.ndim != 2 or weights.numel() == 0:
        raise DataError(f"tile {tile}: weights must be a matrix [rows, cols], not of shape {list(weights.shape)}")
    rows, cols = weights.shape
    if rows > (device.rows or rows) or cols > (device.cols or cols):
        limit = " x ".join("any" if n is None else str(n) for n in (device.rows, device.cols))
        raise ConfigError(
            f"weights of {rows} x {cols} do not fit tile {tile} of {device.identity}, "
            f"which has {limit} rows x columns; cut them into tiles first"
        )
    if not weights.isfinite().all():
        raise DataError(f"tile {tile}: the weights hold NaN or infinite values")


def check_inputs(tile: int, rows: int | None, inputs: Tensor) -> None:
    """Refuse inputs unless they are [n, rows]; `rows` is what was programmed, None where nothing was.

    Raises:
        UsageError: the tile was never programmed, or the shapes differ.
    """
    if rows is None:
        raise unprogrammed(tile)
    if inputs.ndim != 2 or inputs.shape[1] != rows:
        raise UsageError(
            f"tile {tile} was programmed with {rows} rows, so inputs must be [n, {rows}], not {list(inputs.shape)}"
        )


def check_part(tile: int, shape: tuple[int, int] | None, part: TilePart) -> None:
    """Refuse a part that lies outside of what was programmed, `shape`; None where nothing was.

    Raises:
        UsageError: the tile was never programmed, or has no such rows or columns.
    """
    if shape is None:
        raise unprogrammed(tile)
    rows, cols = shape
    inside = 0 <= part.first_row < part.first_row + part.rows <= rows
    if not (inside and 0 <= part.first_col < part.first_col + part.cols <= cols):
        raise UsageError(f"tile {tile} was programmed with {rows} x {cols} weights, which {part} does not lie within")


def check_advance(seconds: float) -> None:
    """Raise UsageError for what is no time that can pass."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UsageError(f"simulated time cannot advance by {seconds} s; give a number >= 0")


def private_columns(weights: Tensor) -> Tensor:
    """A copy of `weights` ([rows, cols]) as contiguous [cols, rows], outside autograd and inference mode.

    That is a host layer's own layout: the transpose of it needs no copy there. A copy made in inference
    mode could not be used in training later.
    """
    import torch

    with torch.inference_mode(False):
        return weights.detach().t().clone(memory_format=torch.contiguous_format)


def unprogrammed(tile: int) -> UsageError:
    """The error for a tile that is used before anything was programmed on it."""
    return UsageError(f"tile {tile} holds no weights yet; program it first")
