"""aihwkit's model of one analog matrix-vector product, for many vectors at once.

The steps and their parameters are those of aihwkit's C++ tile (`IOParameters`, mv_type OnePass): noise management,
DAC, product, IR drop, weight noise, output noise, ADC, bound management. That tile takes one vector after the other,
on one core, with noise seeded by the clock; here all vectors of a batch go together, on all cores, with noise from a
generator that is passed in.

Source: Rasch et al., "A flexible and fast PyTorch toolkit for simulating training and inference on analog crossbar
arrays", AICAS 2021, section III; Rasch et al., "Hardware-aware training for large-scale and diverse deep learning
inference workloads using in-memory computing-based accelerators", Nat. Commun. 2023, eq. 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

NoiseManagement = Literal["none", "abs_max", "max", "constant", "abs_max_np_sum"]
BoundManagement = Literal["none", "iterative", "iterative_worst_case"]
WeightNoise = Literal["none", "additive_constant", "pcm_read"]

_ASSUMED_LARGEST_WEIGHT = 0.6  # of abs_max_np_sum; aihwkit's constant
# So many inputs at a time: what is made of them stays in the cache; with fewer the calls weigh more than the work.
_CHUNK_ELEMENTS = 1 << 19


@dataclass(frozen=True, slots=True)
class IoModel:
    """The converters and the noise around an array, in units of a full-scale input and a full-scale weight.

    `input_step`, `output_step`: one code of DAC and ADC, 0 without quantisation. `input_bound`, `output_bound`: their
    range, infinite without. `input_noise`, `output_noise`: standard deviations. `weight_noise`: of the weights, seen
    at the outputs. `ir_drop`: scale of the voltage drop along the rows; `ir_drop_ratio`: wire over largest
    conductance. `largest_reduction`: where bound management gives up.
    """

    input_step: float
    input_bound: float
    input_noise: float
    input_stochastic: bool
    output_step: float
    output_bound: float
    output_noise: float
    output_stochastic: bool
    output_scale: float
    weight_noise: float
    weight_noise_type: WeightNoise
    ir_drop: float
    ir_drop_ratio: float
    noise_management: NoiseManagement
    noise_management_threshold: float
    bound_management: BoundManagement
    test_negative_bound: bool
    largest_reduction: float
    finest_input: float  # share of the input range that a bound-managed input may shrink to


@dataclass(frozen=True, slots=True)
class Blocks:
    """Parts of a tile's weights [blocks, cols, rows], the rows where they begin, and how many rows the tile has."""

    weights: Tensor
    first_rows: Tensor
    tile_rows: int


class AnalogMvm:
    """Products of input vectors with the weights of a tile. Inside, vectors are columns: [rows, n], [cols, n]."""

    def __init__(self, io: IoModel) -> None:
        self._io = io
        self._weight_noise = io.weight_noise if io.weight_noise_type != "none" else 0.0
        self._coarsest = io.finest_input / io.input_step if io.input_step else None
        self._largest_reduction = min(io.largest_reduction, math.inf if self._coarsest is None else self._coarsest)
        # Where inputs are divided by their largest magnitude nothing is left to clip.
        scaled = io.noise_management == "abs_max" and io.noise_management_threshold <= 0 and io.input_bound >= 1
        self._clips_inputs = math.isfinite(io.input_bound) and not scaled

    def __call__(self, weights: Tensor, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Outputs [n, cols] for `inputs` [n, rows] and `weights` [cols, rows]; the generator is on the CPU."""
        rows = inputs.shape[1]
        places = torch.arange(rows, device=inputs.device, dtype=inputs.dtype) / rows
        array = _Array(self._of_codes(weights), weights, places, rows)
        size = max(1, _CHUNK_ELEMENTS // max(1, rows))
        return _joined([self._managed(array, part, generator) for part in inputs.t().split(size, dim=1)], 1).t()

    def of_blocks(self, blocks: Blocks, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Outputs [blocks, n, cols] for `inputs` [blocks, n, rows], each block with vectors of its own."""
        _, n, rows = inputs.shape
        vectors = max(1, min(n, _CHUNK_ELEMENTS // max(1, rows)))
        count = max(1, _CHUNK_ELEMENTS // (vectors * max(1, rows)))
        return _joined(
            [
                _joined([self._block_chunk(part, x, generator) for x in some.split(vectors, dim=1)], 1)
                for part, some in zip(_split(blocks, count), inputs.split(count), strict=True)
            ],
            0,
        )

    def _block_chunk(self, blocks: Blocks, inputs: Tensor, generator: torch.Generator) -> Tensor:
        count, n, rows = inputs.shape
        weights = blocks.weights
        own = torch.arange(rows, device=inputs.device, dtype=inputs.dtype)
        places = (blocks.first_rows.to(inputs)[:, None, None] + own) / blocks.tile_rows
        array = _Array(self._of_codes(weights), weights, places, blocks.tile_rows, (n,) * count)
        y = self._managed(array, inputs.movedim(2, 0).reshape(rows, count * n), generator)
        return y.unflatten(1, (count, n)).movedim(0, 2)

    def _of_codes(self, weights: Tensor) -> Tensor:
        return weights * self._io.input_step if self._io.input_step else weights

    def _managed(self, array: _Array, x: Tensor, generator: torch.Generator) -> Tensor:
        """One chunk, each vector scaled to the range of the DAC, and again where it saturates the ADC."""
        scale = self._scale(x, self._io.noise_management)
        silent = scale <= 0  # a vector of zeros: nothing is sent, so nothing comes back
        scale = torch.where(silent, 1.0, scale)
        y, saturated = self._product(array, x, scale, generator)
        y.mul_(scale)
        if saturated is not None:
            self._shrink(array, x, scale, y, saturated, generator)
        if self._io.input_noise == 0 and bool(silent.any()):
            y.masked_fill_(silent, 0.0)
        return y.mul_(self._io.output_scale) if self._io.output_scale != 1 else y

    def _shrink(
        self, array: _Array, x: Tensor, scale: Tensor, y: Tensor, saturated: Tensor, generator: torch.Generator
    ) -> None:
        """Repeat the vectors that saturate the ADC with smaller inputs, until they fit or are too coarse."""
        todo, reduction = saturated.nonzero().squeeze(1), 1.0
        scale, factor = self._worst_case(x, scale)
        while len(todo) and reduction <= self._largest_reduction:
            reduction, factor = reduction * factor, 2.0
            smaller = scale.expand(1, x.shape[1])[:, todo] * reduction
            part, still = self._product(array.of_vectors(todo), x[:, todo], smaller, generator)
            y[:, todo] = part * smaller
            todo = todo[:0] if still is None else todo[still]

    def _worst_case(self, x: Tensor, scale: Tensor) -> tuple[Tensor, float]:
        """The scale of the first repetition, and how many times smaller it makes the inputs."""
        if self._io.bound_management == "iterative" or self._io.noise_management == "abs_max_np_sum":
            return scale, 2.0
        if self._io.noise_management == "none":
            return scale, 1.0  # the scale is noise management's; without it the first repetition changes nothing
        return self._scale(x, "abs_max_np_sum").clamp(min=torch.finfo(x.dtype).tiny), 1.0

    def _scale(self, x: Tensor, management: NoiseManagement) -> Tensor:
        """What each vector is divided by before the DAC: [1, n] or a scalar."""
        threshold = self._io.noise_management_threshold
        match management:
            case "none":
                return x.new_ones(())
            case "constant":
                return x.new_tensor(threshold if threshold > 0 else 1.0)
            case "max":
                largest = x.amax(0, keepdim=True)
            case _:
                largest = _magnitude(x).unsqueeze(0)
        if threshold > 0:
            largest = largest.clamp(max=threshold)
        return self._sum_scale(x, largest) if management == "abs_max_np_sum" else largest

    def _sum_scale(self, x: Tensor, largest: Tensor) -> Tensor:
        """A scale at which the outputs would fit even if all weights were as large as assumed."""
        io = self._io
        of_one_sign = torch.maximum(x.clamp(min=0).sum(0, keepdim=True), x.clamp(max=0).sum(0, keepdim=True).neg())
        bound = io.output_bound if math.isfinite(io.output_bound) else 1.0
        needed = of_one_sign * (_ASSUMED_LARGEST_WEIGHT / bound)
        if self._coarsest is not None:
            needed = torch.minimum(needed, largest * self._coarsest)
        return torch.maximum(largest, needed)

    def _product(
        self, array: _Array, x: Tensor, scale: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs in units of the array [cols, n], and which vectors saturate a bound-managed ADC [n]; None: none."""
        codes = self._convert_inputs(x, scale, generator)
        y = array.times(array.of_codes, codes)
        if self._io.ir_drop or self._weight_noise:
            self._disturb(array, codes * (self._io.input_step or 1.0), y, generator)
        return self._convert_outputs(y, generator)

    def _convert_inputs(self, x: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
        """The DAC: codes, or values where it has no steps."""
        io = self._io
        step = io.input_step or 1.0
        codes = x * (1.0 / (scale * step))
        if io.input_step:
            if io.input_stochastic:
                codes += _uniform(codes, generator)
            codes.round_()
        if self._clips_inputs:
            codes.clamp_(-io.input_bound / step, io.input_bound / step)
        if io.input_noise:
            codes.add_(_normal(codes, generator), alpha=io.input_noise / step)
        return codes

    def _disturb(self, array: _Array, values: Tensor, y: Tensor, generator: torch.Generator) -> None:
        """IR drop and weight noise, added to `y` in place."""
        io, weights = self._io, array.weights
        if io.ir_drop:
            current = array.times(weights.abs(), values.abs()) * (array.rows / io.ir_drop_ratio)
            drop = current * (current * (0.05 * current - 0.2) + 0.5)
            far = 1.0 - array.places
            y.sub_(drop * array.times(weights * (1.0 - far * far), values), alpha=io.ir_drop)
        if self._weight_noise:
            if io.weight_noise_type == "additive_constant":
                spread = torch.linalg.vector_norm(values, dim=0, keepdim=True)
            else:
                spread = array.times(weights.abs(), values.square()).sqrt_()
            y.addcmul_(spread.expand_as(y), _normal(y, generator), value=self._weight_noise)

    def _convert_outputs(self, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Output noise and the ADC."""
        io = self._io
        if io.output_noise:
            y.add_(_normal(y, generator), alpha=io.output_noise)
        if io.output_step:
            y.div_(io.output_step)
            if io.output_stochastic:
                y += _uniform(y, generator)
            y.round_().mul_(io.output_step)
        if not math.isfinite(io.output_bound):
            return y, None
        saturated = None
        if io.bound_management != "none":
            tops = _magnitude(y) if io.test_negative_bound else y.amax(0)
            found = tops > io.output_bound
            saturated = found if bool(found.any()) else None
        return y.clamp_(-io.output_bound, io.output_bound), saturated


@dataclass(frozen=True, slots=True)
class _Array:
    """A tile's weights [cols, rows] or those of some of its blocks [blocks, cols, rows], for inputs in codes of the
    DAC, and as they are.

    `places`: where rows lie in the tile, from 0 to 1. `rows`: how many the tile has. `counts`: for blocks, how many
    vectors are each one's; they come block after block.
    """

    of_codes: Tensor
    weights: Tensor
    places: Tensor
    rows: int
    counts: tuple[int, ...] | None = None

    def times(self, weights: Tensor, values: Tensor) -> Tensor:
        """`values` [rows, n] times weights of this shape [cols, n]."""
        if self.counts is None:
            return weights @ values
        if len(set(self.counts)) == 1:
            by_block = values.unflatten(1, (len(self.counts), self.counts[0])).movedim(1, 0)
            return (weights @ by_block).movedim(0, 1).flatten(1)
        pairs = zip(weights, values.split(self.counts, dim=1), strict=True)
        return torch.cat([block @ vectors for block, vectors in pairs if vectors.shape[1]], dim=1)

    def of_vectors(self, which: Tensor) -> _Array:
        """The same for some of the vectors only, which are named in ascending order."""
        if self.counts is None:
            return self
        ends = torch.tensor(self.counts).cumsum(0)
        reached = torch.searchsorted(which.cpu(), ends).tolist()
        return replace(self, counts=tuple(end - start for start, end in pairwise([0, *reached])))


def _split(blocks: Blocks, count: int) -> Iterator[Blocks]:
    for weights, first_rows in zip(blocks.weights.split(count), blocks.first_rows.split(count), strict=True):
        yield Blocks(weights, first_rows, blocks.tile_rows)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _magnitude(x: Tensor) -> Tensor:
    """The largest magnitude of each column; several times as fast as torch's infinity norm."""
    return torch.maximum(x.amax(0), x.amin(0).neg())


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of a tensor's shape; drawn on the CPU, so that every torch device sees the same."""
    return torch.empty(like.shape, dtype=like.dtype).normal_(generator=generator).to(like.device)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """The same, uniform in [-0.5, 0.5): what stochastic rounding adds."""
    return torch.empty(like.shape, dtype=like.dtype).uniform_(-0.5, 0.5, generator=generator).to(like.device)
