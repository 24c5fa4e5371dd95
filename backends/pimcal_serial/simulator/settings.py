"""What a virtual board is like: its HELLO, its imperfections, the faults of its link."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pimcal.profile.ranges import Baud, Celsius, CelsiusSwing, Ratio, Seconds, Seed, Share, SignedRatio, zero_or

Size = Annotated[int, Field(ge=1, le=0xFFFF)]
Bits = Annotated[int, Field(ge=2, le=8)]
Numbers = tuple[Annotated[int, Field(ge=1, lt=2**63)], ...]
Away = Annotated[float, *zero_or(1e-6, 604_800)]  # seconds; who is away for more than a week does not come back
CapabilityName = Literal["int4_inputs", "zero_skipping", "packed_outputs", "input_buffer", "baud", "trims"]
ALL: tuple[CapabilityName, ...] = (
    "int4_inputs",
    "zero_skipping",
    "packed_outputs",
    "input_buffer",
    "baud",
    "trims",
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ArraySettings(_Part):
    """How the array errs. Without any of it, products are exact.

    Noise acts on the weights W in units of their codes, elementwise: `mul` W + W * N_T * N_S, `add`
    W + N_T * N_S * (largest code), with N_T ~ N(eta0, (sigma_temporal * eta0)^2) redrawn for each MVM request and
    N_S ~ N(mu_spatial, sigma_spatial^2) of the cell, the same after every programming and start. The sum is
    rounded to a whole number. Each column j then errs by its own (1 + gain_spread * g_j) and offset_spread * o_j (in
    units of the sum), with standard normal g_j and o_j. A share `stuck_cells` holds the largest code, its negative, or
    0, whatever is programmed; READBACK shows it. Weights fade as (1 + age_s)^-drift_exponent after programming,
    and by `gain_per_c` for each degree above 25.

    Source of the noise models: Tsai et al., "Robust processing-in-memory neural networks via noise-aware
    normalization", eq. 1 and 2; of the power law: Joshi et al. 2020, "Accurate deep neural network inference using
    computational phase-change memory".
    """

    noise: Literal["mul", "add"] | None = None
    eta0: Ratio = 0.0
    sigma_temporal: Ratio = 0.2
    sigma_spatial: Ratio = 0.1
    mu_spatial: SignedRatio = 1.0
    granularity: Literal["element", "tile", "device"] = "element"
    gain_spread: Ratio = 0.0
    offset_spread: Annotated[float, *zero_or(1e-9, 2**31)] = 0.0
    stuck_cells: Share = 0.0
    drift_exponent: Ratio = 0.0
    temperature_c: Celsius = 25.0
    temperature_amplitude_c: CelsiusSwing = 0.0
    temperature_period_s: Seconds = 86400.0
    gain_per_c: SignedRatio = 0.0
    seed: Seed = 0


class FaultSettings(_Part):
    """What goes wrong between host and board.

    Shares are of the frames in either direction, `byte_errors` of the bytes. `stall_s` is how long a board that
    stalls sends nothing. `stall_at`, `reset_at` and `unplug_at` number the frames that come from the host, from 1
    over all starts: before such a frame is answered, the board stalls, restarts, or is unplugged for `unplugged_s`.
    """

    lost: Share = 0.0
    duplicated: Share = 0.0
    reordered: Share = 0.0
    corrupted: Share = 0.0
    truncated: Share = 0.0
    byte_errors: Share = 0.0
    stalled: Share = 0.0
    stall_s: Away = 0.5
    stall_at: Numbers = ()
    reset_at: Numbers = ()
    unplug_at: Numbers = ()
    unplugged_s: Away = 0.5
    seed: Seed = 0


class BoardSettings(_Part):
    """A virtual board. Without `array` and `faults` it is an exact digital one behind a clean link."""

    model: str = "pimsim"
    serial_number: str = "SIM-0001"
    tiles: Size = 4
    rows: Size = 256
    cols: Size = 256
    weight_bits: Bits = 8
    input_bits: Bits = 8
    output_bits: int = Field(0, ge=0, le=24, description="output converter; 0: none, sums are sent as they are")
    max_payload: int = Field(4096, ge=68, le=2**20)
    window: Size = 4
    replay: Size = 8
    command_ms: int = Field(100, ge=0, le=2**32 - 1)
    capabilities: tuple[CapabilityName, ...] = ALL
    buffer_bytes: int = Field(65536, ge=0, le=2**28)
    mvm_ns: int = Field(0, ge=0, le=2**32 - 1)
    supply_mv: int = Field(3300, ge=0, le=2**16 - 1)
    max_baud: Baud = 12_000_000
    log: bool = False
    protocol_version: int = Field(1, ge=0, le=255)
    array: ArraySettings = ArraySettings()
    faults: FaultSettings = FaultSettings()

    @model_validator(mode="after")
    def _refuse_what_the_protocol_excludes(self) -> BoardSettings:
        least = max(64 + max(self.rows, 4 * self.cols), 4 + 2 * self.tiles)
        if self.max_payload < least:
            raise ValueError(f"max_payload {self.max_payload} is less than {least}, which tiles so large and many need")
        if self.replay < self.window:
            raise ValueError(f"replay {self.replay} is less than window {self.window}")
        if self.output_bits == 1:
            raise ValueError("output_bits 1 leaves no code but 0; 0 means no converter")
        return self
