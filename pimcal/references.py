"""Reference columns: what the array itself adds to and multiplies every column by, measured in each batch.

Of each tile a few columns hold zeros (offset) and a few a known constant (gain). They see the same inputs and
the same noise as the others. The zero columns' output is subtracted from every column. The constant columns'
output is compared with the constant times the sum of the inputs, which the host knows; every column is
divided by the ratio. No calibration image is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ReferenceColumns:
    """How many columns of each tile are reserved, behind the blocks: first `offset` zeros, then `gain` constants."""

    offset: int = 0
    gain: int = 0

    @property
    def count(self) -> int:
        return self.offset + self.gain


def pooled_gain(measured: Tensor, known: Tensor, pool: Tensor) -> Tensor:
    """The gain of each group's columns [groups], pooled over the groups that share a tile.

    measured, known: [n, groups, 1, l], the constant columns' output and what it should be; pool: [groups],
    the index of each group's tile. A least-squares fit through the origin over the batch and all positions,
    sum(measured * known) / sum(known^2): unlike a ratio of sums it stays defined for inputs of mean zero.
    Without evidence (no input), or where the fit is not positive, the gain is 1.
    """
    evidence = known.square().sum((0, 2, 3), dtype=torch.float64)
    product = (measured.double() * known).sum((0, 2, 3))
    size = int(pool.max()) + 1
    evidence = evidence.new_zeros(size).index_add(0, pool, evidence)
    product = product.new_zeros(size).index_add(0, pool, product)
    gain = product / evidence
    return torch.where(torch.isfinite(gain) & (gain > 0), gain, 1.0)[pool].float()


def correct(raw: Tensor, known: Tensor, pool: Tensor, columns: ReferenceColumns) -> Tensor:
    """The columns [n, groups, cols, l] of a block, corrected by the references that follow them in `raw`.

    raw: [n, groups, cols + offset + gain, l]; known: [n, groups, 1, l], the exact output of the gain columns.
    """
    cols = raw.shape[2] - columns.count
    values, zeros, constants = raw.split([cols, columns.offset, columns.gain], dim=2)
    if columns.offset:
        offset = zeros.mean(2, keepdim=True)
        values, constants = values - offset, constants - offset
    if columns.gain:
        gain = pooled_gain(constants.mean(2, keepdim=True), known, pool)
        values = values / gain[:, None, None]
    return values
