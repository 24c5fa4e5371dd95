"""The `device:` part of a profile whose backend is `gaussian`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pimcal.profile.ranges import Celsius, CelsiusSwing, RatePerSecond, Ratio, Seconds, Seed, SignedRatio


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ConstantDrift(_Part):
    """eta0(t) = eta0."""

    kind: Literal["constant"]


class LinearDrift(_Part):
    """eta0(t) = eta0 * (1 + rate_per_s * t)."""

    kind: Literal["linear"]
    rate_per_s: RatePerSecond


class LogarithmicDrift(_Part):
    """eta0(t) = eta0 * (1 + amplitude * ln(1 + t / time_constant_s))."""

    kind: Literal["logarithmic"]
    amplitude: SignedRatio
    time_constant_s: Seconds


class TemperatureDrift(_Part):
    """T(t) = mean_temperature_c + amplitude_c * sin(2 pi t / period_s), and
    eta0(t) = eta0 * (1 + eta0_per_c * (T(t) - mean_temperature_c)): `eta0_per_c` is a share of eta0.
    """

    kind: Literal["temperature"]
    mean_temperature_c: Celsius = 25.0
    amplitude_c: CelsiusSwing
    period_s: Seconds
    eta0_per_c: SignedRatio


class RandomWalkDrift(_Part):
    """eta0(t) = eta0 * (1 + the sum of one N(0, std^2) for every whole `step_s` that passed)."""

    kind: Literal["random_walk"]
    step_s: Seconds
    std: Ratio


Drift = Annotated[
    ConstantDrift | LinearDrift | LogarithmicDrift | TemperatureDrift | RandomWalkDrift,
    Field(discriminator="kind"),
]


class GaussianSettings(_Part):
    """Noise model and its parameters; W are a layer's weights, products are element-wise.

    `mul`: W + W * N_T * N_S, `add`: W + N_T * N_S, with N_T ~ N(eta0, (sigma_temporal * eta0)^2) drawn for
    every inference batch and N_S ~ N(mu_spatial, sigma_spatial^2) drawn when the weights are programmed.
    `awgn`: W + N(0, (eta0 * std(W))^2), the standard deviation taken over the layer, drawn for every batch
    or only when the weights are programmed (`redraw`).

    `granularity` says whether N_T is drawn per weight, per tile, or once for the whole device.

    Source: Tsai et al., "Robust processing-in-memory neural networks via noise-aware normalization", eq. 1
    and 2; Fagbohungbe and Qian, "Effect of batch normalization on noise resistant property of deep learning
    models", eq. 10 to 12.
    """

    noise: Literal["mul", "add", "awgn"]
    eta0: Ratio
    sigma_temporal: Ratio = 0.2
    sigma_spatial: Ratio = 0.1
    mu_spatial: SignedRatio = 1.0
    granularity: Literal["element", "tile", "device"] = "element"
    redraw: Literal["batch", "program"] = "batch"
    seed: Seed = 0
    drift: Drift | None = None

    @model_validator(mode="after")
    def _refuse_what_would_have_no_effect(self) -> GaussianSettings:
        if self.noise == "awgn" and self.granularity != "element":
            raise ValueError(f"granularity '{self.granularity}' is for mul and add; awgn is drawn per element")
        if self.noise != "awgn" and self.redraw != "batch":
            raise ValueError(f"redraw '{self.redraw}' is for awgn; {self.noise} redraws N_T for every batch")
        return self
