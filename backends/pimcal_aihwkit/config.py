"""From settings to aihwkit's own objects, and from those to what the backend works with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pimcal.errors import ConfigError
from pimcal_aihwkit.analog_mvm import IoModel
from pimcal_aihwkit.installation import import_aihwkit
from pimcal_aihwkit.parts import (
    CustomNoise,
    Drift,
    Forward,
    HermesNoise,
    Mapping,
    NoNoise,
    Parts,
    PcmNoise,
    ReramCmoNoise,
    ReramNoise,
)
from pimcal_aihwkit.presets import limits_of, preset

if TYPE_CHECKING:
    from aihwkit.inference.noise.base import BaseNoiseModel
    from aihwkit.simulator.configs import InferenceRPUConfig
    from aihwkit.simulator.parameters import IOParameters

# What only aihwkit's own tiles know; each is off at its value here.
_ONLY_IN_CPP = {
    "inp_asymmetry": 0.0,
    "out_asymmetry": 0.0,
    "out_noise_std": 0.0,
    "out_nonlinearity": 0.0,
    "slope_calibration": 0.0,
    "v_offset_std": 0.0,
    "r_series": 0.0,
    "w_read_asymmetry_dtod": 0.0,
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What a profile comes to. `io`: None where products are perfect; `noise`: None for weights that stay.

    `input_range`: inputs are clipped to it and divided by it before the tile; None: neither.
    `rows`, `cols`: the largest tile of the preset; None: any.
    """

    rpu: InferenceRPUConfig
    io: IoModel | None
    noise: BaseNoiseModel | None
    scaling: str
    omega: float
    input_range: float | None
    drift_compensation: bool
    rows: int | None
    cols: int | None


def build(settings: Parts) -> Setup:
    """Everything that `settings` say, the rest from their preset or aihwkit's defaults.

    Raises ConfigError for what the chosen kind of tile cannot compute, MissingExtraError without aihwkit.
    """
    import_aihwkit()
    rpu = _base(settings)
    _set_forward(rpu.forward, settings.forward)
    _set_mapping(rpu.mapping, settings.mapping)
    _check_forward(rpu.forward)
    if settings.tile == "vectorised":
        _check_vectorised(rpu.forward)
    if settings.tile == "torch":
        _check_torch(rpu.forward)
    scaled = rpu.mapping.weight_scaling_omega > 0
    scaling = ("column" if rpu.mapping.weight_scaling_columnwise else "tile") if scaled else "none"
    largest = limits_of(rpu)
    bounded = settings.preset is not None
    return Setup(
        rpu=rpu,
        io=None if _is_perfect(rpu.forward) else _io_model(rpu.forward),
        noise=_preset_noise(settings.preset, rpu) if settings.noise is None else _noise_model(settings.noise),
        scaling=scaling,
        omega=rpu.mapping.weight_scaling_omega or 1.0,
        input_range=_input_range(rpu, settings.forward),
        drift_compensation=_compensates(settings, rpu),
        rows=largest.rows if bounded else None,
        cols=largest.cols if bounded else None,
    )


def _compensates(settings: Parts, rpu: InferenceRPUConfig) -> bool:
    if settings.drift_compensation is not None:
        return settings.drift_compensation == "global"
    return rpu.drift_compensation is not None and settings.preset != "FloatingPointPreset"


def _base(settings: Parts) -> InferenceRPUConfig:
    from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig

    if settings.preset is None:
        rpu = TorchInferenceRPUConfig() if settings.tile == "torch" else InferenceRPUConfig()
        rpu.drift_compensation = None  # a profile that says nothing gets none
        return rpu
    named = preset(settings.preset)
    if settings.tile == "torch" and not isinstance(named, TorchInferenceRPUConfig):
        named = TorchInferenceRPUConfig(**_parts(named))
    if settings.tile == "cpp" and isinstance(named, TorchInferenceRPUConfig):
        named = InferenceRPUConfig(**_parts(named))
    return named


def _parts(rpu: InferenceRPUConfig) -> dict[str, Any]:
    """What two configurations with different tiles share."""
    names = ("forward", "mapping", "noise_model", "drift_compensation", "pre_post", "clip", "remap", "modifier")
    return {name: getattr(rpu, name) for name in names}


def _set_forward(io: IOParameters, wanted: Forward) -> None:
    from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType, WeightNoiseType

    names = {
        "perfect": "is_perfect",
        "input_bound": "inp_bound",
        "output_bound": "out_bound",
        "input_noise": "inp_noise",
        "output_noise": "out_noise",
        "input_stochastic_rounding": "inp_sto_round",
        "output_stochastic_rounding": "out_sto_round",
        "weight_noise": "w_noise",
        "ir_drop": "ir_drop",
        "noise_management_threshold": "nm_thres",
    }
    for ours, theirs in names.items():
        if (value := getattr(wanted, ours)) is not None:
            setattr(io, theirs, value)
    if wanted.input_bits is not None:
        io.inp_res = _resolution(wanted.input_bits)
    if wanted.output_bits is not None:
        io.out_res = _resolution(wanted.output_bits)
    if wanted.noise_management is not None:
        io.noise_management = NoiseManagementType[wanted.noise_management.upper()]
    if wanted.bound_management is not None:
        io.bound_management = BoundManagementType[wanted.bound_management.upper()]
    if wanted.weight_noise_type is not None:
        io.w_noise_type = WeightNoiseType[wanted.weight_noise_type.upper()]


def _resolution(bits: int) -> float:
    """aihwkit counts the steps of a converter: two codes fewer than its bits have; below 0 there are none."""
    return 1.0 / max(1, 2**bits - 2) if bits else -1.0


def _set_mapping(mapping: Any, wanted: Mapping) -> None:
    if wanted.weight_scaling is not None:
        mapping.weight_scaling_columnwise = wanted.weight_scaling == "column"
        mapping.weight_scaling_omega = 0.0 if wanted.weight_scaling == "none" else 1.0
    if wanted.weight_scaling_omega is not None:
        mapping.weight_scaling_omega = wanted.weight_scaling_omega


def _input_range(rpu: InferenceRPUConfig, wanted: Forward) -> float | None:
    given = rpu.pre_post.input_range
    value = wanted.input_range if wanted.input_range is not None else given.init_value if given.enable else 0.0
    return value or None


def _is_perfect(io: IOParameters) -> bool:
    from aihwkit.simulator.parameters.enums import AnalogMVType

    return io.is_perfect or io.mv_type == AnalogMVType.IDEAL


def _check_forward(io: IOParameters) -> None:
    """Refuse what no tile computes, whether it comes from a preset or was spelled out."""
    from aihwkit.simulator.parameters.enums import NoiseManagementType, WeightNoiseType

    if _is_perfect(io):
        return
    if io.noise_management != NoiseManagementType.NONE and io.inp_bound != 1.0:
        raise ConfigError(
            f"device.forward: noise management {io.noise_management.value} scales inputs to 1, so input_bound must be 1"
        )
    if io.w_noise > 0 and io.w_noise_type == WeightNoiseType.NONE:
        raise ConfigError("device.forward: weight_noise needs a weight_noise_type: additive_constant or pcm_read")


def _check_vectorised(io: IOParameters) -> None:
    from aihwkit.simulator.parameters.enums import AnalogMVType, BoundManagementType, NoiseManagementType

    if _is_perfect(io):
        return
    lacking = [name for name, off in _ONLY_IN_CPP.items() if getattr(io, name) != off]
    if io.mv_type != AnalogMVType.ONE_PASS:
        lacking.append(f"mv_type {io.mv_type.value}")
    if io.bound_management == BoundManagementType.SHIFT:
        lacking.append("bound management Shift")
    if io.noise_management == NoiseManagementType.AVERAGE_ABS_MAX:
        lacking.append("noise management AverageAbsMax")
    if lacking:
        raise ConfigError(f"device.tile: vectorised does not model {', '.join(lacking)}; set device.tile: cpp")


def _check_torch(io: IOParameters) -> None:
    from aihwkit.exceptions import ConfigError as AihwkitConfigError
    from aihwkit.simulator.tiles.analog_mvm import AnalogMVM

    if _is_perfect(io):
        return
    try:
        AnalogMVM.check_support(io)
    except AihwkitConfigError as error:
        raise ConfigError(f"device.tile: torch cannot compute this ({error}); use vectorised or cpp") from error


def _io_model(io: IOParameters) -> IoModel:
    return IoModel(
        input_step=_step(io.inp_res, io.inp_bound),
        input_bound=io.inp_bound if io.inp_bound > 0 else math.inf,
        input_noise=io.inp_noise,
        input_stochastic=io.inp_sto_round,
        output_step=_step(io.out_res, io.out_bound),
        output_bound=io.out_bound if io.out_bound > 0 else math.inf,
        output_noise=io.out_noise,
        output_stochastic=io.out_sto_round,
        output_scale=io.out_scale,
        weight_noise=io.w_noise,
        weight_noise_type=io.w_noise_type.name.lower(),
        ir_drop=io.ir_drop,
        ir_drop_ratio=io.ir_drop_g_ratio,
        noise_management=io.noise_management.name.lower(),
        noise_management_threshold=io.nm_thres,
        bound_management=io.bound_management.name.lower(),
        test_negative_bound=io.bm_test_negative_bound,
        largest_reduction=io.max_bm_factor,
        finest_input=io.max_bm_res,
    )


def _step(resolution: float, bound: float) -> float:
    """One code of a converter: a share of its range, which aihwkit also takes as a number of steps; 0: none."""
    share = np.float32(1.0) / np.float32(resolution) if resolution > 1 else np.float32(max(0.0, resolution))
    return float(share * np.float32(2.0 * max(0.0, bound)))  # in single precision, so that the last code is the tile's


def _preset_noise(name: str | None, rpu: InferenceRPUConfig) -> BaseNoiseModel | None:
    """The floating-point preset is meant to have no noise at all, but inherits aihwkit's default of PCM."""
    return None if name == "FloatingPointPreset" else rpu.noise_model


def _noise_model(noise: Any) -> BaseNoiseModel | None:
    match noise:
        case NoNoise():
            return None
        case PcmNoise():
            return _pcm(noise)
        case HermesNoise():
            from aihwkit.inference.noise.hermes import HermesNoiseModel

            return HermesNoiseModel(num_devices=noise.devices, **_scales(noise))
        case ReramNoise():
            from aihwkit.inference.noise.reram import ReRamWan2022NoiseModel

            return ReRamWan2022NoiseModel(g_max=noise.g_max_microsiemens, noise_scale=noise.noise_scale)
        case ReramCmoNoise():
            from aihwkit.inference.noise.reram import ReRamCMONoiseModel

            return ReRamCMONoiseModel(
                g_max=noise.g_max_microsiemens,
                g_min=noise.g_min_microsiemens,
                acceptance_range=float(noise.acceptance_range.rstrip("%")),
                **_scales(noise),
            )
        case _:
            return _custom(noise)


def _scales(noise: Any) -> dict[str, float]:
    return {
        "prog_noise_scale": noise.programming_noise_scale,
        "read_noise_scale": noise.read_noise_scale,
        "drift_scale": noise.drift_scale,
    }


def _pcm(noise: PcmNoise) -> BaseNoiseModel:
    from aihwkit.inference.noise.pcm import CustomDriftPCMLikeNoiseModel, PCMLikeNoiseModel

    coefficients = noise.programming_coefficients
    common = {
        "g_max": noise.g_max_microsiemens,
        "prog_coeff": None if coefficients is None else list(coefficients),
        "t_0": noise.t_0_s,
        "t_read": noise.t_read_s,
        **_scales(noise),
    }
    if noise.drift is None:
        return PCMLikeNoiseModel(**common)
    from aihwkit.inference.converter.conductance import SinglePairConductanceConverter

    converter = SinglePairConductanceConverter(g_max=noise.g_max_microsiemens)
    return CustomDriftPCMLikeNoiseModel(_table(noise.drift), g_converter=converter, **common)


def _table(drift: Drift) -> dict[str, list[float]]:
    return {
        "g_lst": list(drift.g_microsiemens),
        "nu_mean_lst": list(drift.nu_mean),
        "nu_std_lst": list(drift.nu_std),
    }


def _custom(noise: CustomNoise) -> BaseNoiseModel:
    from aihwkit.inference.noise.custom import StateIndependentNoiseModel

    return StateIndependentNoiseModel(
        g_max=noise.g_max_microsiemens,
        prog_coeff=list(noise.programming_coefficients),
        drift_nu_mean=noise.nu_mean,
        drift_nu_std=noise.nu_std,
        t_0=noise.t_0_s,
        t_read=noise.t_read_s,
        **_scales(noise),
    )
