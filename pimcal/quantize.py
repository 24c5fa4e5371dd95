"""Uniform quantisation as DACs, ADCs and integer arrays do it. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def largest_code(bits: int, *, signed: bool = True) -> int:
    """The largest code of a converter: 127 for 8 signed bits (the range is symmetric), 255 unsigned."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def quantize(
    values: Tensor, bits: int, *, signed: bool = True, dims: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and step size such that `codes * step` approximates `values`.

    The full scale is the largest magnitude over `dims` (all dimensions where it is None); `step` keeps
    those dimensions with size 1, so that it broadcasts. Codes are whole numbers in floating point, with
    ties to even; an all-zero slice gets step 1. The error is at most half a step.
    """
    magnitude = values.abs()
    top = magnitude.amax() if dims is None else magnitude.amax(dims, keepdim=True)
    step = top / largest_code(bits, signed=signed)
    step = step.masked_fill(step == 0, 1.0)
    return (values / step).round(), step
