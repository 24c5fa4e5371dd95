"""What a profile may say about aihwkit's devices, and how what it must not say is told: file, line, column."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

import pimcal
from pimcal.profile import ProfileError
from pimcal_aihwkit.parts import PcmNoise
from pimcal_aihwkit.settings import AihwkitSettings

HEAD = "schema: pimcal/1\nbackend: aihwkit\n"
needs_aihwkit = pytest.mark.skipif(find_spec("aihwkit") is None, reason="needs aihwkit: pip install 'pimcal[aihwkit]'")

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(body)` makes a profile of the backend `aihwkit`; the body begins in line 3."""

    def write_it(body: str) -> str:
        path = tmp_path / "p.yaml"
        path.write_text(HEAD + dedent(body).lstrip("\n"))
        return str(path)

    return write_it


def problems(file: str) -> list[tuple[str, str]]:
    """Each problem of a profile: `line:column: key` and message."""
    with pytest.raises(ProfileError) as raised:
        pimcal.load_profile(file)
    found = raised.value.problems
    assert all(problem.at.file == file for problem in found)
    return [(f"{p.at.line}:{p.at.column}: {p.path}", p.message) for p in found]


def settings_of(file: str) -> AihwkitSettings:
    settings = pimcal.load_profile(file).settings
    assert isinstance(settings, AihwkitSettings)
    return settings


# what is wrong

WRONG_VALUES = [
    ("device: {tile: gpu}", "3:16: device.tile", "must be 'vectorised', 'cpp' or 'torch' (got gpu)"),
    ("device: {seed: -1}", "3:16: device.seed", "must be greater than or equal to 0 (got -1)"),
    ("device: {seed: 9223372036854775808}", "3:16: device.seed", "less than"),
    ("device: {drift_compensation: column}", "3:30: device.drift_compensation", "must be 'none' or 'global'"),
    ("device: {noise: pcm}", "3:17: device.noise", "must be a mapping"),
    ("device: {noise: {kind: pmc}}", "3:17: device.noise", "pmc"),
    ("device: {noise: {g_max_microsiemens: 25}}", "3:17: device.noise", "kind"),
    ("device: {noise: {kind: pcm, g_max_microsiemens: 0}}", "3:49: device.noise.g_max_microsiemens", "greater than 0"),
    ("device: {noise: {kind: pcm, read_noise_scale: -1}}", "3:47: device.noise.read_noise_scale", "greater than or"),
    (
        "device: {noise: {kind: pcm, programming_coefficients: []}}",
        "3:55: device.noise.programming_coefficients",
        "at least 1",
    ),
    ("device: {noise: {kind: hermes, devices: 3}}", "3:41: device.noise.devices", "must be 1 or 2 (got 3)"),
    (
        "device: {noise: {kind: reram_cmo, acceptance_range: 5%}}",
        "3:53: device.noise.acceptance_range",
        "must be '0.2%' or '2%' (got 5%)",
    ),
    ("device: {forward: {input_bits: 7.5}}", "3:32: device.forward.input_bits", "must be a valid integer"),
    ("device: {forward: {output_bits: 25}}", "3:33: device.forward.output_bits", "less than or equal to 24"),
    ("device: {forward: {output_noise: '0.06'}}", "3:34: device.forward.output_noise", "must be a valid number"),
    ("device: {forward: {perfect: yes}}", "3:29: device.forward.perfect", "written true or false"),
    ("device: {forward: {noise_management: average}}", "3:38: device.forward.noise_management", "must be 'none', "),
    ("device: {mapping: {weight_scaling: rows}}", "3:36: device.mapping.weight_scaling", "must be 'none', 'tile' or"),
    (
        "device: {mapping: {weight_scaling_omega: 1.5}}",
        "3:42: device.mapping.weight_scaling_omega",
        "less than or equal to 1",
    ),
]

UNKNOWN_KEYS = [
    ("device: {sede: 3}", "3:10: device.sede", "unknown key; did you mean 'device.seed'?"),
    ("device: {noise: {kind: pcm, g_max: 25}}", "3:29: device.noise.g_max", "unknown key; known: drift, drift_scale"),
    (
        "device: {noise: {kind: hermes, device: 1}}",
        "3:32: device.noise.device",
        "unknown key; did you mean 'device.noise.devices'?",
    ),
    ("device: {noise: {kind: none, nu_mean: 0.1}}", "3:30: device.noise.nu_mean", "unknown key; known: kind"),
    (
        "device: {forward: {in_bits: 7}}",
        "3:20: device.forward.in_bits",
        "unknown key; did you mean 'device.forward.input_bits'?",
    ),
    (
        "device: {mapping: {scaling: tile}}",
        "3:20: device.mapping.scaling",
        "unknown key; did you mean 'device.mapping.weight_scaling'?",
    ),
]

CONFLICTS = [
    (
        "device: {forward: {perfect: true, input_bits: 7}}",
        "3:19: device.forward",
        "perfect products have no input_bits; leave it out, or set perfect: false",
    ),
    (
        "device: {forward: {perfect: true, output_noise: 0, input_bits: 7}}",
        "3:19: device.forward",
        "perfect products have no input_bits, output_noise",
    ),
    ("device: {forward: {weight_noise: 0.1}}", "3:9: device", "weight_noise needs a weight_noise_type"),
    (
        "device: {forward: {weight_noise: 0.1, weight_noise_type: none}}",
        "3:9: device",
        "weight_noise needs a weight_noise_type: additive_constant or pcm_read",
    ),
    (
        "device: {forward: {input_bound: 0.5, noise_management: abs_max}}",
        "3:9: device",
        "noise_management: abs_max scales inputs to 1, so forward.input_bound must be 1",
    ),
    (
        "device: {tile: torch, forward: {weight_noise: 0.1, weight_noise_type: pcm_read}}",
        "3:9: device",
        "torch tile has no weight_noise; use tile: vectorised or tile: cpp",
    ),
    (
        "device: {tile: torch, forward: {ir_drop: 1.0, noise_management: abs_max_np_sum}}",
        "3:9: device",
        "torch tile has no ir_drop, noise_management: abs_max_np_sum",
    ),
    (
        "device: {noise: {kind: reram_cmo, g_min_microsiemens: 90}}",
        "3:17: device.noise",
        "g_min_microsiemens must be smaller than g_max_microsiemens",
    ),
    (
        "device: {noise: {kind: pcm, drift: {g_microsiemens: [0, 20], nu_mean: [1, 1], nu_std: [0, 0]}}}",
        "3:17: device.noise",
        "drift.g_microsiemens must reach from 0 to g_max_microsiemens (25)",
    ),
    (
        "device: {noise: {kind: pcm, drift: {g_microsiemens: [5, 25], nu_mean: [1, 1], nu_std: [0, 0]}}}",
        "3:17: device.noise",
        "drift.g_microsiemens must reach from 0 to g_max_microsiemens (25)",
    ),
    (
        "device: {noise: {kind: pcm, drift: {g_microsiemens: [0, 25], nu_mean: [1], nu_std: [0, 0]}}}",
        "3:36: device.noise.drift",
        "g_microsiemens, nu_mean and nu_std must be of one length",
    ),
    (
        "device: {noise: {kind: pcm, drift: {g_microsiemens: [0, 0, 25], nu_mean: [1, 1, 1], nu_std: [0, 0, 0]}}}",
        "3:36: device.noise.drift",
        "g_microsiemens must ascend",
    ),
]


@pytest.mark.parametrize(("body", "where", "message"), [*WRONG_VALUES, *UNKNOWN_KEYS, *CONFLICTS])
def test_a_wrong_profile_is_told_with_line_and_column(write: Write, body: str, where: str, message: str) -> None:
    [(found, text)] = problems(write(body))
    assert found == where
    assert message in text


def test_every_mistake_is_told_at_once_in_the_order_of_the_file(write: Write) -> None:
    found = problems(
        write("""
            device:
              tile: metal
              noise: {kind: pcm, speed: 1}
              forward:
                input_bits: seven
                output_nois: 0.1
              mapping: {weight_scaling: rows}
            tiles: {rows: 0}
        """)
    )
    assert [where for where, _ in found] == [
        "4:9: device.tile",
        "5:22: device.noise.speed",
        "7:17: device.forward.input_bits",
        "8:5: device.forward.output_nois",
        "9:29: device.mapping.weight_scaling",
        "10:15: tiles.rows",
    ]


# Each of these asks for what the device cannot do.
IMPOSSIBLE = [
    ("weight_scaling", "device: {mapping: {weight_scaling: none, weight_scaling_omega: 0.5}}"),
    ("input_bound", "device: {forward: {input_bound: 0.5}}"),  # aihwkit's default noise management scales to 1
    ("input_bits", "device: {forward: {input_bits: 1}}"),  # signed codes of one bit: only 0 is left
    ("output_bits", "device: {forward: {output_bits: 1}}"),
    ("t_0_s", "device: {noise: {kind: pcm, t_0_s: 1.0e-9}}"),  # before the first read: the logarithm is negative
    ("t_0_s", "device: {noise: {kind: custom, t_0_s: 1.0e-9}}"),
    ("weight_noise", "device: {tile: torch, forward: {weight_noise: 0.0, weight_noise_type: pcm_read}}"),
]


@pytest.mark.parametrize(("key", "body"), IMPOSSIBLE)
def test_an_impossible_combination_is_told_by_its_key(write: Write, key: str, body: str) -> None:
    [(where, text)] = problems(write(body))
    assert key in where or key in text


NO_EFFECT = [
    ("noise_management_threshold", "device: {forward: {noise_management: none, noise_management_threshold: 3.0}}"),
    ("output_bound", "device: {forward: {output_bound: 0, output_bits: 9}}"),  # without a range there are no steps
    ("input_bound", "device: {forward: {input_bound: 0, noise_management: none, input_bits: 7}}"),
]


@pytest.mark.parametrize(("key", "body"), NO_EFFECT)
def test_what_would_have_no_effect_is_refused(write: Write, key: str, body: str) -> None:
    [(where, text)] = problems(write(body))
    assert key in where or key in text


# presets


@needs_aihwkit
def test_an_unknown_preset_is_refused_with_a_suggestion(write: Write) -> None:
    [(where, text)] = problems(write("device: {preset: StandardHWATrainingPrest}"))
    assert where == "3:18: device.preset"
    assert "did you mean 'StandardHWATrainingPreset'?" in text


@needs_aihwkit
@pytest.mark.parametrize("name", ["EcRamPreset", "PCMPreset", "TikiTakaReRamESPreset"])
def test_a_preset_for_training_is_refused_and_those_for_inference_are_named(write: Write, name: str) -> None:
    [(where, text)] = problems(write(f"device: {{preset: {name}}}"))
    assert where == "3:18: device.preset"
    assert f"'{name}' is a preset for training" in text
    assert "StandardHWATrainingPreset" in text


@needs_aihwkit
@pytest.mark.parametrize("name", ["utils", "__doc__", "PresetIOParameters", "InferenceRPUConfig", ""])
def test_what_is_no_preset_at_all_is_called_unknown(write: Write, name: str) -> None:
    [(where, text)] = problems(write(f"device: {{preset: '{name}'}}"))
    assert where == "3:18: device.preset"
    assert "no preset" in text
    assert "training on the device" not in text


@needs_aihwkit
def test_a_tile_larger_than_the_presets_is_refused_where_its_size_is_written(write: Write) -> None:
    file = write("device: {preset: StandardHWATrainingPreset}\ntiles: {rows: 513, cols: 4096}")
    [(where, text)] = problems(file)
    assert where == "4:15: tiles.rows"
    assert text == "StandardHWATrainingPreset models tiles of at most 512 rows (got 513)"


@needs_aihwkit
def test_a_tile_as_large_as_the_presets_is_accepted_and_its_other_side_is_free(write: Write) -> None:
    file = write("device: {preset: StandardHWATrainingPreset}\ntiles: {rows: 512, cols: 4096}")
    with pimcal.open_device(file) as device:
        assert (device.capabilities.rows, device.capabilities.cols) == (512, 4096)


@needs_aihwkit
def test_tiles_without_a_size_are_as_large_as_the_presets(write: Write) -> None:
    with pimcal.open_device(write("device: {preset: StandardHWATrainingPreset}\ntiles: {cols: 8}")) as device:
        assert (device.capabilities.rows, device.capabilities.cols) == (512, 8)
    with pimcal.open_device(write("device: {preset: StandardHWATrainingPreset}")) as device:
        assert (device.capabilities.rows, device.capabilities.cols) == (512, None)


@needs_aihwkit
def test_what_the_torch_tile_lacks_is_refused_in_a_preset_too(write: Write) -> None:
    [(where, text)] = problems(write("device: {preset: StandardHWATrainingPreset, tile: torch}"))
    assert where.startswith("3:")
    assert "w_noise not supported in torch tile" in text


@needs_aihwkit
@pytest.mark.parametrize(
    ("key", "forward"),
    [
        ("input_bound", "{input_bound: 0.5}"),  # the preset's noise management scales inputs to 1
        ("weight_noise", "{weight_noise: 0.1, weight_noise_type: none}"),
    ],
)
def test_what_does_not_go_together_with_a_preset_is_refused(write: Write, key: str, forward: str) -> None:
    [(where, text)] = problems(write(f"device: {{preset: StandardHWATrainingPreset, forward: {forward}}}"))
    assert where.startswith("3:")
    assert key in text


@needs_aihwkit
def test_a_preset_gives_weight_noise_its_type(write: Write) -> None:
    from pimcal_aihwkit.config import build

    io = build(settings_of(write("device: {preset: StandardHWATrainingPreset, forward: {weight_noise: 0.1}}"))).io
    assert io is not None
    assert (io.weight_noise, io.weight_noise_type) == (0.1, "pcm_read")


# what is right


def test_what_a_profile_leaves_out_is_left_to_the_preset(write: Write) -> None:
    settings = settings_of(write("device: {seed: 3}"))
    assert settings.preset is None
    assert settings.noise is None
    assert settings.drift_compensation is None
    assert not settings.forward.model_fields_set
    assert not settings.mapping.model_fields_set
    assert (settings.tile, settings.seed) == ("vectorised", 3)


def test_everything_that_can_be_said_is_understood(write: Write) -> None:
    settings = settings_of(
        write("""
            device:
              noise:
                kind: pcm
                g_max_microsiemens: 20
                programming_coefficients: [0.3, 1]
                programming_noise_scale: 0.5
                read_noise_scale: 0
                drift_scale: 2
                t_0_s: 30
                t_read_s: 1e-6
                drift: {g_microsiemens: [0, 20], nu_mean: [0.1, 0.05], nu_std: [0.01, 0]}
              forward:
                perfect: false
                input_bits: 6
                output_bits: 8
                input_bound: 1
                output_bound: 10
                input_noise: 0.01
                output_noise: 0.02
                input_stochastic_rounding: true
                output_stochastic_rounding: false
                weight_noise: 0.03
                weight_noise_type: additive_constant
                ir_drop: 0.5
                noise_management: max
                noise_management_threshold: 3
                bound_management: iterative_worst_case
                input_range: 2
              mapping: {weight_scaling: column, weight_scaling_omega: 0.8}
              drift_compensation: global
              tile: cpp
              seed: 9223372036854775807
        """)
    )
    noise = settings.noise
    assert isinstance(noise, PcmNoise)
    assert noise.drift is not None
    assert (noise.g_max_microsiemens, noise.programming_coefficients, noise.t_0_s) == (20.0, (0.3, 1.0), 30.0)
    assert noise.drift.nu_mean == (0.1, 0.05)
    assert (settings.forward.input_bits, settings.forward.input_bound, settings.forward.ir_drop) == (6, 1.0, 0.5)
    assert (settings.mapping.weight_scaling, settings.mapping.weight_scaling_omega) == ("column", 0.8)
    assert (settings.drift_compensation, settings.tile, settings.seed) == ("global", "cpp", 2**63 - 1)


@pytest.mark.parametrize("kind", ["none", "pcm", "hermes", "reram", "reram_cmo", "custom"])
def test_every_kind_of_noise_has_defaults(write: Write, kind: str) -> None:
    noise = settings_of(write(f"device: {{noise: {{kind: {kind}}}}}")).noise
    assert noise is not None
    assert noise.kind == kind


@needs_aihwkit
@pytest.mark.parametrize("name", ["aihwkit_ideal", "aihwkit_pcm", "aihwkit_reram", "aihwkit_standard"])
def test_shipped_profiles_load_and_open(name: str) -> None:
    with pimcal.open_device(name) as device:
        assert device.capabilities.simulated_clock
        assert device.capabilities.effective_weights == (name == "aihwkit_ideal")
        assert device.capabilities.drift_compensation == (name == "aihwkit_standard")


@needs_aihwkit
def test_parts_that_are_given_replace_the_presets_and_the_rest_stays(write: Write) -> None:
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
    from aihwkit.inference.noise.reram import ReRamWan2022NoiseModel

    from pimcal_aihwkit.config import build

    preset = build(settings_of(write("device: {preset: StandardHWATrainingPreset}")))
    changed = build(
        settings_of(
            write("""
                device:
                  preset: StandardHWATrainingPreset
                  noise: {kind: reram}
                  forward: {output_noise: 0.01, input_range: 0}
                  mapping: {weight_scaling: tile}
                  drift_compensation: none
            """)
        )
    )
    assert preset.io is not None
    assert changed.io is not None
    assert isinstance(preset.noise, PCMLikeNoiseModel)
    assert isinstance(changed.noise, ReRamWan2022NoiseModel)
    assert (preset.io.output_noise, changed.io.output_noise) == (0.04, 0.01)
    assert (preset.input_range, changed.input_range) == (3.0, None)
    assert (preset.scaling, changed.scaling) == ("column", "tile")
    assert (preset.drift_compensation, changed.drift_compensation) == (True, False)
    assert preset.io.output_step == changed.io.output_step == pytest.approx(20 / 254)
    assert (preset.io.ir_drop, preset.io.weight_noise) == (changed.io.ir_drop, changed.io.weight_noise) == (1.0, 0.0175)


@needs_aihwkit
def test_a_preset_without_any_noise_has_none(write: Write) -> None:
    import torch

    file = write("device: {preset: FloatingPointPreset}")
    with pimcal.open_device(file) as device:
        weights = torch.randn(6, 4)
        device.program(0, weights)
        torch.testing.assert_close(device.effective_weights(0), weights)


@needs_aihwkit
def test_bits_are_the_steps_that_aihwkit_counts(write: Write) -> None:
    from aihwkit.simulator.parameters import IOParameters

    from pimcal_aihwkit.config import build

    defaults, own = IOParameters(), build(settings_of(write("device: {forward: {input_bits: 7, output_bits: 9}}")))
    assert (own.rpu.forward.inp_res, own.rpu.forward.out_res) == pytest.approx((defaults.inp_res, defaults.out_res))


@needs_aihwkit
def test_no_bits_are_no_quantisation(write: Write) -> None:
    from pimcal_aihwkit.config import build

    io = build(settings_of(write("device: {forward: {input_bits: 0, output_bits: 0}}"))).io
    assert io is not None
    assert (io.input_step, io.output_step) == (0.0, 0.0)
