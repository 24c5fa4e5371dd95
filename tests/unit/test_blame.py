"""Whose mistake an exception is, and where it is to be mended."""

import linecache

import pytest
import torch
from greenlet import GreenletExit

from pimcal.blame import blamed_on
from pimcal.errors import DataError, UsageError


def raise_it(error):
    raise error


@pytest.mark.parametrize("error", [ValueError("bad sum"), torch.OutOfMemoryError("out of memory\ndetails")])
def test_an_exception_becomes_an_error_with_its_type_message_and_line(error):
    with pytest.raises(UsageError) as caught, blamed_on("the model"):
        raise_it(error)

    message = str(caught.value)
    line = int(message.rpartition(":")[2].rstrip(")"))
    assert message.startswith(f"the model failed with {type(error).__name__}: {error}")
    assert linecache.getline(__file__, line).strip() == "raise error"
    assert caught.value.__cause__ is error


def test_an_exception_inside_torch_names_the_line_that_called_it():
    with pytest.raises(UsageError, match=r"RuntimeError: mat1 and mat2 shapes.*test_blame\.py:\d+\)"), blamed_on("it"):
        torch.nn.Linear(3, 2)(torch.zeros(1, 4))


@pytest.mark.parametrize("error", [DataError("bad"), KeyboardInterrupt(), GreenletExit()])
def test_errors_of_pimcal_and_interrupts_pass(error):
    with pytest.raises(type(error)) as caught, blamed_on("the model"):
        raise_it(error)

    assert caught.value is error
