"""What a profile can say of aihwkit's devices, each part by itself: noise, forward pass, mapping."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from pimcal.profile.ranges import Microsiemens, Ratio, Seconds, Seed, above_zero, signed, zero_or


def _no_single_bit(bits: int) -> int:
    if bits == 1:
        raise ValueError("signed codes of 1 bit leave 0 alone; use 0 (no quantisation) or 2 to 24")
    return bits


Scale = Annotated[float, *zero_or(1e-9, 1e6)]  # of an effect that is small by itself
Bits = Annotated[int, Field(ge=0, le=24), AfterValidator(_no_single_bit)]
# Microsiemens, as coefficients of a polynomial in g / g_max: no larger than any conductance.
Coefficients = Annotated[tuple[Annotated[float, *signed(1e-9, 1e6)], ...], Field(min_length=1, max_length=8)]
Conductance = Annotated[float, *zero_or(1e-9, 1e6)]  # microsiemens
Bound = Annotated[float, *zero_or(1e-6, 1e6)]  # in full scales, where tiles have at most some 100,000 rows
TileKind = Literal["vectorised", "cpp", "torch"]


class Part(BaseModel):
    """Unknown keys are refused, types are not guessed, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NoNoise(Part):
    """Weights are programmed exactly and stay."""

    kind: Literal["none"]


class Drift(Part):
    """A measured drift coefficient nu over conductance, g(t) = g * (t / t_0)^-nu: a mean and a spread for each of
    `g_microsiemens`, which ascend and cover the whole range; in between it is interpolated."""

    g_microsiemens: Annotated[tuple[Conductance, ...], Field(min_length=2)]
    nu_mean: tuple[Ratio, ...]
    nu_std: tuple[Ratio, ...]

    @model_validator(mode="after")
    def _pair_up(self) -> Drift:
        if not len(self.g_microsiemens) == len(self.nu_mean) == len(self.nu_std):
            raise ValueError("g_microsiemens, nu_mean and nu_std must be of one length")
        if list(self.g_microsiemens) != sorted(set(self.g_microsiemens)):
            raise ValueError("g_microsiemens must ascend")
        return self


class PcmNoise(Part):
    """Phase-change memory: programming noise, drift, and 1/f read noise that has piled up since programming.

    `programming_coefficients`: the standard deviation of programming, in microsiemens, as a polynomial in
    g / g_max, the constant first. The three scales multiply each kind of noise; 0 takes it away.
    Source: Nandakumar et al., "Phase-change memory models for deep learning training and inference", ICECS 2019.
    """

    kind: Literal["pcm"]
    g_max_microsiemens: Microsiemens = 25.0
    programming_coefficients: Coefficients | None = None
    programming_noise_scale: Ratio = 1.0
    read_noise_scale: Ratio = 1.0
    drift_scale: Ratio = 1.0
    t_0_s: Seconds = 20.0
    t_read_s: Seconds = 250e-9
    drift: Drift | None = None

    @model_validator(mode="after")
    def _cover_the_range(self) -> PcmNoise:
        _check_times(self.t_0_s, self.t_read_s)
        if self.drift and (self.drift.g_microsiemens[0] > 0 or self.drift.g_microsiemens[-1] < self.g_max_microsiemens):
            raise ValueError(
                f"drift.g_microsiemens must reach from 0 to g_max_microsiemens ({self.g_max_microsiemens:g})"
            )
        return self


class HermesNoise(Part):
    """Phase-change memory as measured on the Hermes chip, with one or two devices for a weight.

    Source: Le Gallo et al., Nat. Electron. 2023.
    """

    kind: Literal["hermes"]
    devices: Literal[1, 2] = 2
    programming_noise_scale: Ratio = 1.0
    read_noise_scale: Ratio = 1.0
    drift_scale: Ratio = 1.0


class ReramNoise(Part):
    """Filamentary ReRAM: how far conductances have spread 1 s, 1 day and 2 days after programming.

    Between these times the spread is interpolated over the logarithm of time, and after them it stays; one
    draw at programming says where in that spread each device lies. Source: Wan et al., Nature 2022.
    """

    kind: Literal["reram"]
    g_max_microsiemens: Microsiemens = 40.0
    noise_scale: Ratio = 1.0


class ReramCmoNoise(Part):
    """Conductive-metal-oxide ReRAM with one device for a weight; `acceptance_range`: how close to
    its target programming stops.

    Source: Falcone et al., "All-in-one analog AI hardware", 2025, as fitted in aihwkit.
    """

    kind: Literal["reram_cmo"]
    g_min_microsiemens: Annotated[float, Field(ge=5.0, le=1e6)] = 9.0  # decays by some 3 within years
    g_max_microsiemens: Microsiemens = 88.199997
    acceptance_range: Literal["0.2%", "2%"] = "0.2%"
    programming_noise_scale: Ratio = 1.0
    read_noise_scale: Ratio = 1.0
    drift_scale: Ratio = 1.0

    @model_validator(mode="after")
    def _keep_a_range(self) -> ReramCmoNoise:
        if self.g_min_microsiemens >= self.g_max_microsiemens:
            raise ValueError("g_min_microsiemens must be smaller than g_max_microsiemens")
        return self


class CustomNoise(Part):
    """A device of your own: programming noise as a polynomial (see `pcm`), drift and read noise the same for all
    conductances; nu ~ |N(nu_mean, nu_std^2)| is drawn at programming."""

    kind: Literal["custom"]
    g_max_microsiemens: Microsiemens = 25.0
    programming_coefficients: Coefficients = (0.2,)
    programming_noise_scale: Ratio = 1.0
    nu_mean: Ratio = 0.1
    nu_std: Ratio = 0.05
    drift_scale: Ratio = 1.0
    read_noise_scale: Ratio = 1.0
    t_0_s: Seconds = 20.0
    t_read_s: Seconds = 250e-9

    @model_validator(mode="after")
    def _keep_times_apart(self) -> CustomNoise:
        _check_times(self.t_0_s, self.t_read_s)
        return self


def _check_times(t_0_s: float, t_read_s: float) -> None:
    """Read noise piles up as sqrt(log((t + t_read) / (2 t_read))), which needs t > t_read."""
    if t_0_s <= t_read_s:
        raise ValueError(f"t_0_s must be larger than t_read_s ({t_read_s:g} s)")


Noise = Annotated[
    NoNoise | PcmNoise | HermesNoise | ReramNoise | ReramCmoNoise | CustomNoise, Field(discriminator="kind")
]


class Forward(Part):
    """Converters and noise of one matrix-vector product, in units of a full-scale input and a full-scale weight.

    Source: Rasch et al., "A flexible and fast PyTorch toolkit for simulating training and inference on analog
    crossbar arrays", AICAS 2021, section III.
    """

    perfect: bool | None = Field(None, description="exact products; noise of the weights remains")
    input_bits: Bits | None = Field(None, description="DAC; 0: no quantisation")
    output_bits: Bits | None = Field(None, description="ADC; 0: no quantisation")
    input_bound: Bound | None = Field(None, description="largest input; 0: none")
    output_bound: Bound | None = Field(None, description="largest output; 0: none")
    input_noise: Ratio | None = Field(None, description="standard deviation on each input")
    output_noise: Ratio | None = Field(None, description="standard deviation on each output")
    input_stochastic_rounding: bool | None = None
    output_stochastic_rounding: bool | None = None
    weight_noise: Ratio | None = Field(None, description="read noise of the weights, for each product anew")
    weight_noise_type: Literal["none", "additive_constant", "pcm_read"] | None = None
    ir_drop: Annotated[float, *zero_or(1e-9, 1e6)] | None = Field(
        None, description="scale of the voltage drop along the rows"
    )
    noise_management: Literal["none", "abs_max", "max", "constant", "abs_max_np_sum"] | None = None
    noise_management_threshold: Bound | None = None
    bound_management: Literal["none", "iterative", "iterative_worst_case"] | None = None
    input_range: Bound | None = Field(None, description="inputs are clipped to it first; 0: not at all")

    @model_validator(mode="after")
    def _refuse_what_would_have_no_effect(self) -> Forward:
        others = self.model_fields_set - {"perfect"}
        if self.perfect and others:
            raise ValueError(
                f"perfect products have no {', '.join(sorted(others))}; leave it out, or set perfect: false"
            )
        if self.noise_management == "none" and self.noise_management_threshold:
            raise ValueError("noise_management_threshold has no effect with noise_management: none")
        for side, bound, bits in (
            ("input", self.input_bound, self.input_bits),
            ("output", self.output_bound, self.output_bits),
        ):
            if bound == 0 and bits:
                raise ValueError(f"{side}_bits need an {side}_bound: a converter without a range has no steps")
        return self


class Mapping(Part):
    """How weights become conductances: their largest magnitude goes to `weight_scaling_omega` of the range."""

    weight_scaling: Literal["none", "tile", "column"] | None = Field(
        None, description="one scale for a tile, one for each of its columns, or the weights as they are"
    )
    weight_scaling_omega: Annotated[float, *above_zero(1e-6, 1)] | None = None

    @model_validator(mode="after")
    def _refuse_a_scale_of_nothing(self) -> Mapping:
        if self.weight_scaling == "none" and self.weight_scaling_omega is not None:
            raise ValueError("weight_scaling_omega has no effect with weight_scaling: none")
        return self


class Parts(Part):
    """All of it; whether it goes together is for `AihwkitSettings` to say."""

    preset: str | None = Field(None, description="a class of aihwkit.simulator.presets for inference")
    noise: Noise | None = None
    forward: Forward = Forward()
    mapping: Mapping = Mapping()
    drift_compensation: Literal["none", "global"] | None = None
    tile: TileKind = "vectorised"
    seed: Seed = 0
