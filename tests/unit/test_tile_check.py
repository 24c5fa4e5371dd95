"""What a backend announces is checked before anything is put on it."""

import pytest

from pimcal.backend import Capabilities
from pimcal.errors import ConfigError
from pimcal.tile_check import check_capabilities


def capabilities(**announced):
    return Capabilities(identity="bench", tiles=1, rows=4, cols=4, weight_unit="full_scale", **announced)


@pytest.mark.parametrize(
    ("announced", "message"),
    [
        ({"weight_bits": 1}, "bench announces signed weights of 1 bits; at least 2"),
        ({"input_bits": 1}, "signed inputs of 1 bits; at least 2"),
        ({"weight_bits": 0, "signed_weights": False}, "unsigned weights of 0 bits; at least 1"),
    ],
)
def test_codes_that_can_only_be_zero_are_refused(announced, message):
    with pytest.raises(ConfigError, match=message):
        check_capabilities(capabilities(**announced))


@pytest.mark.parametrize(
    "announced",
    [
        {},
        {"weight_bits": 2, "input_bits": 2},
        {"weight_bits": 1, "signed_weights": False, "input_bits": 1, "signed_inputs": False},
    ],
)
def test_codes_with_more_than_zero_are_accepted(announced):
    check_capabilities(capabilities(**announced))
