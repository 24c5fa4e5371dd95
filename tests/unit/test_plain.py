"""The backend that states the semantics: integer codes, and a converter that saturates."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pimcal.errors import DataError
from pimcal.plain import Plain, PlainSettings

TILES = SimpleNamespace(count=2, rows=8, cols=4)


def plain(**values: object) -> Plain:
    return Plain(PlainSettings.model_validate(values), TILES)


@given(rows=st.integers(1, 8), cols=st.integers(1, 4), n=st.integers(1, 3), seed=st.integers(0, 1000))
def test_integer_products_are_exact(rows, cols, n, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(-7, 8, (rows, cols), generator=generator).float()
    inputs = torch.randint(-127, 128, (n, rows), generator=generator).float()
    device = plain(weight_bits=4, input_bits=8)
    device.program(0, weights)
    assert torch.equal(device.matmul(0, inputs), inputs @ weights)


@given(share=st.sampled_from([1.0, 0.5, 0.1]), seed=st.integers(0, 1000))
def test_outputs_are_converter_codes_that_saturate_at_the_full_scale(share, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(-7, 8, (5, 3), generator=generator).double()
    inputs = torch.randint(-7, 8, (6, 5), generator=generator).double()
    device = plain(weight_bits=4, input_bits=4, output_bits=5, output_share=share)
    device.program(0, weights)
    outputs = device.matmul(0, inputs)
    full_scale = share * 5 * 7 * 7
    step = full_scale / 15
    clipped = (inputs @ weights).clamp(-full_scale, full_scale)
    assert float((outputs - clipped).abs().max()) <= step / 2 + 1e-9
    codes = outputs / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("value", [0.5, 8.0, -8.0])
def test_weights_that_are_no_codes_are_refused(value):
    with pytest.raises(DataError, match="tile 1: weights must be whole numbers from -7 to 7"):
        plain(weight_bits=4).program(1, torch.tensor([[value]]))


def test_a_negative_input_is_refused_where_inputs_are_unsigned():
    device = plain(input_bits=4, signed_inputs=False)
    device.program(0, torch.ones(2, 1))
    assert device.matmul(0, torch.tensor([[15.0, 0.0]])).item() == 15.0
    with pytest.raises(DataError, match="inputs must be whole numbers from 0 to 15"):
        device.matmul(0, torch.tensor([[-1.0, 0.0]]))


def test_a_converter_without_codes_to_size_it_is_refused():
    with pytest.raises(ValidationError, match="output_bits needs weight_bits and input_bits"):
        plain(weight_bits=8, output_bits=8)


def test_floating_point_is_the_default_and_the_unit_follows_the_weights():
    assert plain().capabilities.weight_unit == "raw"
    assert plain(weight_bits=8).capabilities.weight_unit == "full_scale"
