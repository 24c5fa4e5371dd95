"""The simulated array of one tile: weights, their errors, sums, trims and converter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimcal_serial.inputs import Int8s, Int32s
from pimcal_serial.messages import UNIT_GAIN, Program, Trims
from pimcal_serial.simulator.settings import ArraySettings

Floats = NDArray[np.float64]
Int64s = NDArray[np.int64]

_SPATIAL, _TEMPORAL, _GAINS, _OFFSETS, _STUCK = range(5)  # what a draw is for


def temperature_c(settings: ArraySettings, now_s: float) -> float:
    """The board's temperature."""
    phase = 2 * math.pi * now_s / settings.temperature_period_s
    return settings.temperature_c + settings.temperature_amplitude_c * math.sin(phase)


class Cells:
    """What is wrong with the cells and columns of one tile, whatever is programmed: it depends on the seed alone.

    `spatial` [rows, cols] is N_S, `gains` and `offsets` [cols] those of the columns, `stuck` [rows, cols] says which
    cells hold `codes` for ever.
    """

    def __init__(self, settings: ArraySettings, tile: int, shape: tuple[int, int], top: int) -> None:
        self.settings = settings
        self.top = top
        self._tile = tile
        self.spatial = self.normal(shape, settings.mu_spatial, settings.sigma_spatial, _SPATIAL)
        self.gains = self.normal(shape[1:], 1.0, settings.gain_spread, _GAINS)
        self.offsets = self.normal(shape[1:], 0.0, settings.offset_spread, _OFFSETS)
        generator = self._generator(_STUCK)
        self.stuck = generator.random(shape) < settings.stuck_cells
        self.codes = generator.integers(-1, 2, shape).astype(np.int8) * np.int8(top)

    def temporal(self, shape: tuple[int, int], draw: int) -> Floats:
        """N_T, which broadcasts to `shape`."""
        mean = self.settings.eta0
        std = self.settings.sigma_temporal * mean
        match self.settings.granularity:
            case "element":
                return self.normal(shape, mean, std, _TEMPORAL, draw)
            case "tile":
                return self.normal((1,), mean, std, _TEMPORAL, draw)
            case "device":
                drawn = np.random.default_rng((self.settings.seed, draw)).standard_normal(1)
                return mean + std * drawn

    def normal(self, shape: tuple[int, ...], mean: float, std: float, *purpose: int) -> Floats:
        """Draws from N(mean, std^2) that depend on seed, tile and purpose alone."""
        if not std:
            return np.full(shape, mean)
        return mean + std * self._generator(*purpose).standard_normal(shape)

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.settings.seed, self._tile, *purpose))


class Tile:
    """A matrix in the cells of a tile, from its first row on."""

    def __init__(self, cells: Cells, program: Program, now_s: float) -> None:
        self.id = program.id
        self.shape = rows, cols = program.rows, program.weights.shape[1]
        self.weights = np.zeros(self.shape, np.int8)
        self.trims = Trims(np.zeros(cols, np.int16), np.full(cols, UNIT_GAIN, np.uint16))
        self._cells = cells
        self._missing = np.ones(rows, bool)
        self._programmed_s = now_s

    @property
    def missing(self) -> int:
        """Rows that were not programmed yet."""
        return int(self._missing.sum())

    def write(self, program: Program, now_s: float) -> None:
        """Program some rows; stuck cells stay as they are."""
        rows, cols = slice(program.first, program.first + len(program.weights)), slice(self.shape[1])
        self.weights[rows] = np.where(self._cells.stuck[rows, cols], self._cells.codes[rows, cols], program.weights)
        self._missing[rows] = False
        self._programmed_s = now_s

    def multiply(self, inputs: Int8s, rows: slice, cols: slice, draw: int, now_s: float) -> Int64s:
        """Sums of inputs [n, rows] in some columns, trimmed; `draw` numbers the redraws of the temporal noise."""
        products = inputs.astype(np.float64) @ self._effective(rows, cols, draw)
        sums = products * (self._fading(now_s) * self._cells.gains[cols]) + self._cells.offsets[cols]
        return trimmed(np.rint(sums).astype(np.int64), self.trims, cols)

    def _effective(self, rows: slice, cols: slice, draw: int) -> Floats:
        weights = self.weights[rows, cols].astype(np.float64)
        noise = self._cells.settings.noise
        if noise is None:
            return weights
        scale = weights if noise == "mul" else float(self._cells.top)
        return weights + scale * self._cells.spatial[rows, cols] * self._cells.temporal(weights.shape, draw)

    def _fading(self, now_s: float) -> float:
        settings = self._cells.settings
        age_s = max(0.0, now_s - self._programmed_s)
        warmth = temperature_c(settings, now_s) - 25.0
        return float((1 + age_s) ** -settings.drift_exponent * (1 + settings.gain_per_c * warmth))


def trimmed(sums: Int64s, trims: Trims, cols: slice) -> Int64s:
    """floor((sum * gain + 8192) / 16384) + offset, for each of these columns."""
    return (sums * trims.gain[cols].astype(np.int64) + UNIT_GAIN // 2 >> 14) + trims.offset[cols].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Converter:
    """The output converter of `bits` (0: none)."""

    bits: int

    def convert(self, values: Int64s, step: int, format_bits: int) -> tuple[Int32s, int]:
        """Codes in the range of converter and format, and how many of them were clipped."""
        widest = 2 ** (format_bits - 1) - 1
        top = min(2 ** (self.bits - 1) - 1, widest) if self.bits else widest
        bottom = -top if self.bits else -top - 1
        codes = _divided(values, step)
        clipped = codes.clip(bottom, top)
        return clipped.astype(np.int32), int(np.count_nonzero(clipped != codes))


def _divided(values: Int64s, step: int) -> Int64s:
    """To the nearest, halves away from zero."""
    return np.sign(values) * ((2 * np.abs(values) + step) // (2 * step))
