"""One analog product against aihwkit's own C++ tile: exactly where nothing is drawn, in distribution where it is.

The C++ tile takes its noise from the clock, so each run sees another sample of it. Every comparison of samples is made
at `Z_LEVEL` standard errors; at 6.5 one of the few hundred comparisons here fails by chance once in 1e7 runs.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("aihwkit", reason="needs aihwkit: pip install 'pimcal[aihwkit]'")

from pimcal_aihwkit.analog_mvm import AnalogMvm
from pimcal_aihwkit.backend import Aihwkit
from pimcal_aihwkit.config import Setup, build
from pimcal_aihwkit.settings import AihwkitSettings

Z_LEVEL = 6.5
REPEATS = 20_000
CPP_GAUSSIANS = 32_768  # aihwkit draws from a list of so many normal numbers, made anew for each tile

EXACT = {"input_bits": 0, "output_bits": 0, "input_bound": 0.0, "output_bound": 0.0, "output_noise": 0.0}
NOISE_MANAGEMENT = ["none", "abs_max", "max", "constant", "abs_max_np_sum"]
BOUND_MANAGEMENT = ["none", "iterative", "iterative_worst_case"]


def setup_of(**forward: Any) -> Setup:
    return build(AihwkitSettings.model_validate_json(json.dumps({"noise": {"kind": "none"}, "forward": forward})))


def ours(setup: Setup, weights: Tensor, inputs: Tensor, seed: int = 0) -> Tensor:
    assert setup.io is not None
    return AnalogMvm(setup.io)(weights, inputs, torch.Generator().manual_seed(seed))


@torch.no_grad()
def cpp(setup: Setup, weights: Tensor, inputs: Tensor) -> Tensor:
    """The same product by the C++ code within aihwkit's InferenceTile."""
    tile: Any = setup.rpu.tile_class(*weights.shape, setup.rpu, bias=False)
    tile.tile.set_weights(weights)
    outputs: Tensor = tile.tile.forward(inputs.contiguous(), False, False, False, True, False)
    return outputs


def random_tile(seed: int, rows: int, cols: int, count: int) -> tuple[Tensor, Tensor]:
    """Weights in [-1, 1] and input vectors of all magnitudes; the first is silent, the second has one sign."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(cols, rows, generator=generator) * 2 - 1
    inputs = torch.randn(count, rows, generator=generator)
    inputs *= 10 ** (torch.rand(count, 1, generator=generator) * 4 - 2)
    inputs[0] = 0.0
    inputs[1] = -inputs[1].abs()
    return weights, inputs


# nothing wrong


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    cols=st.integers(1, 20),
    management=st.sampled_from(["none", "abs_max", "constant", "abs_max_np_sum"]),
    threshold=st.sampled_from([0.0, 0.7]),
    bound=st.sampled_from(BOUND_MANAGEMENT),
)
def test_without_noise_and_quantisation_it_is_a_matrix_product(seed, rows, cols, management, threshold, bound):
    forward = {"noise_management": management, "bound_management": bound}
    if management == "abs_max_np_sum":
        threshold = 0.0  # its scale may be larger than the threshold, and only what exceeds the scale is clipped
    if management != "none":
        forward |= {"noise_management_threshold": threshold, "input_bound": 1.0}
    clips = threshold > 0 if management == "abs_max" else management == "constant"
    setup = setup_of(**{**EXACT, **forward})
    weights, inputs = random_tile(seed, rows, cols, 9)
    limit = (threshold or 1.0) if clips else math.inf
    inputs_sent = inputs.clamp(-limit, limit)
    difference = (ours(setup, weights, inputs) - inputs_sent @ weights.t()).abs()
    assert bool((difference <= 1e-5 * inputs_sent.abs() @ weights.abs().t() + 1e-12).all())


def test_max_management_gives_a_matrix_product_where_the_largest_input_is_positive():
    weights, inputs = random_tile(1, 12, 5, 9)
    setup = setup_of(**{**EXACT, "noise_management": "max", "input_bound": 1.0})
    largest = inputs.amax(1, keepdim=True)
    expected = torch.minimum(torch.maximum(inputs, -largest), largest) @ weights.t()
    expected[1] = 0.0  # a vector without a positive input is not sent
    torch.testing.assert_close(ours(setup, weights, inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_any_number_of_vectors_is_multiplied(count):
    weights, inputs = torch.randn(3, 64), torch.randn(count, 64)
    outputs = ours(setup_of(**EXACT, noise_management="none"), weights, inputs)
    assert outputs.shape == (count, 3)
    torch.testing.assert_close(outputs, inputs @ weights.t(), rtol=1e-4, atol=1e-4)


def test_weights_and_inputs_are_left_as_they_were():
    forward = {"weight_noise": 0.1, "weight_noise_type": "pcm_read", "ir_drop": 1.0, "input_noise": 0.1}
    weights, inputs = random_tile(3, 10, 6, 8)
    before = weights.clone(), inputs.clone()
    for management, bound in itertools.product(NOISE_MANAGEMENT, BOUND_MANAGEMENT):
        setup = setup_of(**forward, noise_management=management, bound_management=bound, output_bound=0.5)
        ours(setup, weights, inputs)
        assert torch.equal(weights, before[0])
        assert torch.equal(inputs, before[1])


# the part that is not random, against the C++ tile


def assert_the_same_codes(setup: Setup, weights: Tensor, inputs: Tensor) -> None:
    """Equal to 1e-5 of each vector's largest output, but for a rounding that falls the other way now and then."""
    mine, theirs = ours(setup, weights, inputs), cpp(setup, weights, inputs)
    assert mine.shape == theirs.shape
    close = (mine - theirs).abs() <= 1e-5 * theirs.abs().amax(1, keepdim=True) + 1e-30
    different = float((~close).float().mean())
    assert different < 0.005, (
        f"{different:.1%} of the outputs, in {int((~close).any(1).sum())} of {len(inputs)} vectors"
    )


def with_steps(setup: Setup, dac: int, adc: int) -> Setup:
    """Converters of even numbers of steps: bound management halves the largest input, and no half code is left."""
    assert setup.io is not None
    io = setup.rpu.forward
    io.inp_res, io.out_res = (1 / steps if steps else -1.0 for steps in (dac, adc))
    input_step, output_step = ((2 * bound / n if n else 0.0) for bound, n in ((io.inp_bound, dac), (io.out_bound, adc)))
    return replace(setup, io=replace(setup.io, input_step=input_step, output_step=output_step))


@pytest.mark.parametrize(("dac", "adc", "output_bound"), [(8, 32, 2.0), (128, 512, 4.0), (0, 256, 1.0)])
@pytest.mark.parametrize("ir_drop", [0.0, 3000.0])
@pytest.mark.parametrize("bound", BOUND_MANAGEMENT)
@pytest.mark.parametrize("management", NOISE_MANAGEMENT)
def test_it_computes_what_the_cpp_tile_computes(management, bound, ir_drop, dac, adc, output_bound):
    forward = {"noise_management": management, "bound_management": bound, "ir_drop": ir_drop}
    setup = setup_of(**forward, output_bound=output_bound, output_noise=0.0)
    assert_the_same_codes(with_steps(setup, dac, adc), *random_tile(5, 24, 8, 1000))


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 12),
    cols=st.integers(4, 8),
    dac=st.sampled_from([0, 4, 16, 128]),
    adc=st.sampled_from([0, 4, 32, 256]),
    output_bound=st.sampled_from([0.0, 0.25, 2.0, 16.0]),
    management=st.sampled_from(NOISE_MANAGEMENT),
    limit=st.sampled_from([0.0, 0.3, 2.0]),
    bound=st.sampled_from(BOUND_MANAGEMENT),
    ir_drop=st.sampled_from([0.0, 5000.0]),
)
def test_it_computes_what_the_cpp_tile_computes_whatever_the_settings(
    seed, rows, cols, dac, adc, output_bound, management, limit, bound, ir_drop
):
    forward: dict[str, Any] = {"noise_management": management, "bound_management": bound, "ir_drop": ir_drop}
    forward["input_bound" if management == "none" else "noise_management_threshold"] = limit
    setup = setup_of(**forward, output_bound=output_bound, output_noise=0.0, input_bits=0, output_bits=0)
    assert_the_same_codes(with_steps(setup, dac, adc), *random_tile(seed, rows, cols, 512))


@pytest.mark.parametrize("bits", [2, 3, 5, 7, 8, 10])
@pytest.mark.parametrize("management", NOISE_MANAGEMENT)
def test_bits_make_the_codes_of_the_cpp_tile(management, bits):
    forward = {"noise_management": management, "bound_management": "none", "output_noise": 0.0}
    assert_the_same_codes(setup_of(**forward, input_bits=bits, output_bits=bits), *random_tile(6, 24, 8, 1000))


@pytest.mark.parametrize("output_bound", [1.0, 3.0, 7.0, 10.0, 12.0])
@pytest.mark.parametrize("bits", [4, 7, 8, 9])
def test_the_top_code_is_as_much_a_saturation_as_in_the_cpp_tile(bits, output_bound):
    """It equals the bound but for float32's rounding, which aihwkit's comparison sees."""
    forward = {"input_bits": 0, "output_bits": bits, "output_bound": output_bound, "output_noise": 0.0}
    weights = torch.tensor([[output_bound * (1 - 1e-4)], [output_bound * 0.3]])
    setup = setup_of(**forward)
    inputs = torch.ones(1, 1)
    torch.testing.assert_close(ours(setup, weights, inputs), cpp(setup, weights, inputs), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("management", ["max", "constant"])
def test_worst_case_bound_management_gives_up_where_the_cpp_tile_does(management, bits):
    forward = {"noise_management": management, "bound_management": "iterative_worst_case", "output_noise": 0.0}
    setup = setup_of(**forward, input_bits=bits, output_bits=0, output_bound=1.0)
    assert_the_same_codes(setup, *random_tile(6, 24, 8, 1000))


def test_the_standard_preset_computes_what_the_cpp_tile_computes():
    quiet = {"output_noise": 0.0, "weight_noise": 0.0, "weight_noise_type": "none"}
    part = {"preset": "StandardHWATrainingPreset", "noise": {"kind": "none"}, "forward": quiet}
    assert_the_same_codes(build(AihwkitSettings.model_validate_json(json.dumps(part))), *random_tile(7, 24, 8, 1000))


COARSE = {"input_bits": 3, "output_bits": 5, "output_bound": 1.5, "output_noise": 0.0}


@pytest.mark.parametrize("management", NOISE_MANAGEMENT)
@pytest.mark.parametrize("bound", BOUND_MANAGEMENT)
def test_a_vectors_product_does_not_depend_on_its_neighbours(management, bound):
    setup = setup_of(noise_management=management, bound_management=bound, **COARSE)
    weights, inputs = random_tile(8, 20, 6, 40)
    together = ours(setup, weights, inputs)
    alone = torch.cat([ours(setup, weights, vector[None]) for vector in inputs])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_bound_management_repeats_what_saturates_with_smaller_inputs():
    """Ten inputs of 1 times ten weights of 1 make 10, which an ADC of range 3 sees only after two halvings."""
    weights, inputs = torch.ones(1, 10), torch.ones(1, 10)
    converters = {"output_bound": 3.0, "output_noise": 0.0, "input_bits": 0, "output_bits": 0}
    for bound, expected in (("none", 3.0), ("iterative", 10.0)):
        torch.testing.assert_close(
            ours(setup_of(**converters, bound_management=bound), weights, inputs), torch.tensor([[expected]])
        )


# silence


@pytest.mark.parametrize("bound", BOUND_MANAGEMENT)
@pytest.mark.parametrize("management", ["abs_max", "max", "abs_max_np_sum"])
def test_zero_inputs_give_exactly_zero(management, bound):
    forward = {"weight_noise": 0.1, "weight_noise_type": "additive_constant", "ir_drop": 1.0, "output_noise": 0.5}
    setup = setup_of(**forward, noise_management=management, bound_management=bound, output_stochastic_rounding=True)
    weights, inputs = random_tile(9, 12, 5, 6)
    inputs[3:] = 0.0
    outputs = ours(setup, weights, inputs)
    assert not outputs[[0, 3, 4, 5]].any()
    assert outputs[2].all()
    assert torch.equal(cpp(setup, weights, inputs)[[0, 3, 4, 5]], outputs[[0, 3, 4, 5]])


@pytest.mark.parametrize("management", ["none", "constant"])
def test_a_fixed_range_sends_zeros_and_gets_noise_back(management):
    setup = setup_of(noise_management=management, output_noise=0.5, output_bits=0)
    outputs = ours(setup, torch.ones(4, 3), torch.zeros(500, 3))
    assert float(outputs.std()) == pytest.approx(0.5, rel=0.1)


# noise, against the C++ tile's


def _kurtosis(x: Tensor) -> Tensor:
    return (x - x.mean(0)).pow(4).mean(0) / x.var(0).square().clamp(min=1e-30)


def assert_the_same_distribution(mine: Tensor, theirs: Tensor, rows: int) -> None:
    """Means and standard deviations [n, cols] by column; `theirs` has errors of its short list of normals besides."""
    floor = 1e-6 * float(theirs.abs().max()) + 1e-12
    variance = torch.maximum(mine.var(0), theirs.var(0))
    share = 1 / len(mine) + 1 / len(theirs)
    error = (variance * (share + rows / CPP_GAUSSIANS)).sqrt()
    assert float(((mine.mean(0) - theirs.mean(0)).abs() / (error + floor)).max()) < Z_LEVEL
    kurtosis = torch.maximum(
        *((x - x.mean(0)).pow(4).mean(0) / x.var(0).square().clamp(min=1e-30) for x in (mine, theirs))
    )
    error = ((kurtosis - 1).clamp(min=1) / 4 * variance * (share + 4 / CPP_GAUSSIANS)).sqrt()
    assert float(((mine.std(0) - theirs.std(0)).abs() / (error + floor)).max()) < Z_LEVEL


USUAL = {"input_bits": 7, "output_bits": 9}
NO_CONVERTERS = {"input_bits": 0, "output_bits": 0, "output_noise": 0.0}
NOISES = {
    "output_noise": {**NO_CONVERTERS, "output_noise": 0.3},
    "output_noise through the ADC": {"input_bits": 0, "output_bits": 4, "output_bound": 6.0, "output_noise": 0.3},
    "output_noise at the bound": {**NO_CONVERTERS, "output_noise": 0.5, "output_bound": 1.0},
    "output_noise under bound management": {**USUAL, "output_noise": 0.5, "output_bound": 1.0},
    "input_noise": {**NO_CONVERTERS, "input_noise": 0.2, "bound_management": "none"},
    "input_noise behind the DAC": {"input_bits": 4, "output_bits": 0, "output_noise": 0.0, "input_noise": 0.2},
    "additive_constant": {**NO_CONVERTERS, "weight_noise": 0.1, "weight_noise_type": "additive_constant"},
    "pcm_read": {**NO_CONVERTERS, "weight_noise": 0.1, "weight_noise_type": "pcm_read"},
    "stochastic DAC": {**NO_CONVERTERS, "input_bits": 3, "input_stochastic_rounding": True},
    "stochastic ADC": {**NO_CONVERTERS, "output_bits": 4, "output_stochastic_rounding": True},
    "everything": {
        "input_bits": 5,
        "output_bits": 6,
        "output_bound": 2.0,
        "input_noise": 0.05,
        "output_noise": 0.1,
        "input_stochastic_rounding": True,
        "output_stochastic_rounding": True,
        "weight_noise": 0.05,
        "weight_noise_type": "pcm_read",
        "ir_drop": 10.0,
    },
}
MANAGED = [("abs_max", "iterative"), ("none", "none"), ("abs_max_np_sum", "iterative_worst_case")]


@pytest.mark.parametrize(("management", "bound"), MANAGED)
@pytest.mark.parametrize("forward", NOISES.values(), ids=NOISES)
def test_noise_is_distributed_as_in_the_cpp_tile(forward, management, bound):
    rows = 12
    forward = {"noise_management": management, "bound_management": bound, **forward}
    weights, inputs = random_tile(11, rows, 5, 3)
    inputs = (inputs[2] / inputs[2].abs().max() * 0.9).expand(REPEATS, rows)
    setup = setup_of(**forward)
    mine, theirs = ours(setup, weights, inputs, seed=4), cpp(setup, weights, inputs)
    assert float(mine.std(0).min()) > 0
    assert_the_same_distribution(mine, theirs, rows)


def test_zero_inputs_are_noisy_where_inputs_are_as_in_the_cpp_tile():
    setup = setup_of(**NO_CONVERTERS, input_noise=0.2)
    weights, inputs = random_tile(12, 12, 5, 2)[0], torch.zeros(REPEATS, 12)
    mine, theirs = ours(setup, weights, inputs), cpp(setup, weights, inputs)
    torch.testing.assert_close(mine.std(0), 0.2 * weights.norm(dim=1), rtol=0.05, atol=0)
    assert_the_same_distribution(mine, theirs, 12)


def test_noise_of_different_outputs_and_vectors_is_independent():
    setup = setup_of(**NO_CONVERTERS | {"output_noise": 0.5, "weight_noise": 0.1, "weight_noise_type": "pcm_read"})
    weights, inputs = random_tile(13, 12, 4, 3)
    outputs = ours(setup, weights, inputs[2].expand(REPEATS, 12))
    among_outputs = torch.corrcoef(outputs.t()) - torch.eye(4)
    after_another = torch.corrcoef(torch.cat([outputs[1:], outputs[:-1]], dim=1).t())[:4, 4:]
    assert float(among_outputs.abs().max()) < Z_LEVEL / math.sqrt(REPEATS)
    assert float(after_another.abs().max()) < Z_LEVEL / math.sqrt(REPEATS)


def test_the_generator_alone_decides_the_noise():
    setup = setup_of(output_noise=0.5)
    weights, inputs = random_tile(14, 12, 4, 6)
    assert torch.equal(ours(setup, weights, inputs, seed=1), ours(setup, weights, inputs, seed=1))
    assert not torch.equal(ours(setup, weights, inputs, seed=1), ours(setup, weights, inputs, seed=2))


# aihwkit's own tiles, as the backend uses them


def own_tiles(kind: str, weights: list[Tensor], **forward: Any) -> Aihwkit:
    """Noiseless weights ([cols, rows]) on tiles that multiply with aihwkit's own code."""
    part = {"tile": kind, "noise": {"kind": "none"}, "forward": forward}
    device = Aihwkit(
        AihwkitSettings.model_validate_json(json.dumps(part)), SimpleNamespace(count=None, rows=None, cols=None)
    )
    for tile, values in enumerate(weights):
        device.program(tile, values.t())
    return device


@pytest.mark.parametrize("count", [1, 40])
def test_the_cpp_tile_keeps_its_weights(count):
    """Its C++ code works in memory that Python owns: nothing else may come to lie there."""
    weights = [torch.randn(32, 32) for _ in range(count)]
    device = own_tiles("cpp", weights, **EXACT, noise_management="none")
    inputs = torch.randn(5, 32)
    litter = []
    for _ in range(2):  # weights reach the tile with the first product
        for tile, values in enumerate(weights):
            torch.testing.assert_close(device.matmul(tile, inputs), inputs @ values.t(), rtol=1e-4, atol=1e-4)
        gc.collect()
        litter += [torch.full((32, 32), 7.0) for _ in range(200)]
    assert len(litter) == 400


@pytest.mark.parametrize("count", [0, 1, 3000])
@pytest.mark.parametrize("kind", ["cpp", "torch"])
def test_own_tiles_multiply_any_number_of_vectors(kind, count):
    weights, inputs = torch.randn(3, 64), torch.randn(count, 64)
    outputs = own_tiles(kind, [weights], **EXACT, noise_management="none").matmul(0, inputs)
    assert outputs.shape == (count, 3)
    torch.testing.assert_close(outputs, inputs @ weights.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["cpp", "torch"])
def test_own_tiles_have_the_noise_that_was_asked_for(kind):
    """Nothing can seed the C++ tile's products: what is promised is their distribution."""
    weights, inputs = random_tile(15, 12, 5, 3)
    inputs = inputs[2].expand(REPEATS, 12)
    outputs = own_tiles(kind, [weights], **{**NO_CONVERTERS, "output_noise": 0.3}).matmul(0, inputs)
    std = torch.full((5,), 0.3 * float(inputs[0].abs().max()))
    share = 1 / REPEATS + 1 / CPP_GAUSSIANS
    assert float(((outputs.mean(0) - weights @ inputs[0]).abs() / (std * math.sqrt(share))).max()) < Z_LEVEL
    assert float(((outputs.std(0) / std - 1).abs() / math.sqrt(share / 2)).max()) < Z_LEVEL
