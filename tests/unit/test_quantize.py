"""Quantisation: codes, steps and their error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pimcal.quantize import largest_code, quantize

VALUES = st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=12).map(torch.tensor)


@pytest.mark.parametrize(("bits", "signed", "code"), [(8, True, 127), (8, False, 255), (2, True, 1), (2, False, 3)])
def test_the_largest_code_leaves_a_symmetric_range(bits, signed, code):
    assert largest_code(bits, signed=signed) == code


@given(VALUES, st.integers(2, 12), st.booleans())
def test_codes_are_whole_numbers_in_range_and_at_most_half_a_step_off(values, bits, signed):
    codes, step = quantize(values, bits, signed=signed)

    assert torch.equal(codes, codes.round())
    assert codes.abs().max() <= largest_code(bits, signed=signed)
    error = (codes.double() * step.double() - values.double()).abs().max()
    assert error <= step.double() / 2 * (1 + 1e-4)


@given(VALUES, st.integers(2, 12))
def test_quantising_twice_gives_the_same_codes(values, bits):
    codes, step = quantize(values, bits)

    assert torch.equal(quantize(codes * step, bits)[0], codes)


def test_each_slice_has_a_full_scale_of_its_own():
    values = torch.tensor([[1.0, -2.0], [0.5, 100.0], [0.0, 0.0]])

    codes, step = quantize(values, 3, dims=(1,))

    torch.testing.assert_close(step, torch.tensor([[2 / 3], [100 / 3], [1.0]]))
    assert codes.tolist() == [[2.0, -3.0], [0.0, 3.0], [0.0, 0.0]]  # 1.5 steps: ties go to the even code


def test_zeros_stay_zeros_with_a_step_of_one():
    codes, step = quantize(torch.zeros(3), 8)

    assert codes.tolist() == [0.0, 0.0, 0.0]
    assert step == 1.0


def test_ties_go_to_the_even_code():
    codes, _ = quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, 7.0]), 4)

    assert codes.tolist() == [0.0, 2.0, 2.0, 0.0, 7.0]
