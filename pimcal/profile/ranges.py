"""Physical ranges of numbers in profiles: wide enough for any device, narrow enough to catch a slip of the keyboard.

A number that can be 0 has a smallest magnitude above it, too: what is smaller has no effect that anybody could measure,
and whoever writes it means something else.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

_SMALLEST = 1e-9  # of ratios: a share of 1e-9 is far below float32's resolution of 6e-8


def _not_below(smallest: float) -> AfterValidator:
    def check(value: float) -> float:
        if 0 < abs(value) < smallest:
            raise ValueError(f"is too small to mean anything; the least that does is {smallest:g}")
        return value

    return AfterValidator(check)


def zero_or(smallest: float, largest: float) -> Any:
    """What a number of 0, or from `smallest` to `largest`, is annotated with."""
    return Field(ge=0, le=largest), _not_below(smallest)


def above_zero(smallest: float, largest: float) -> Any:
    """The same without 0."""
    return Field(gt=0, le=largest), _not_below(smallest)


def signed(smallest: float, largest: float) -> Any:
    """The same as `zero_or`, for either sign."""
    return Field(ge=-largest, le=largest), _not_below(smallest)


# Ratios: shares of a whole, noise and spreads relative to what they act on, scales of a noise model. A noise a thousand
# times as large as the weights leaves nothing of a network.
Share = Annotated[float, *zero_or(_SMALLEST, 1)]
Ratio = Annotated[float, *zero_or(_SMALLEST, 1e3)]
SignedRatio = Annotated[float, *signed(_SMALLEST, 1e3)]

# Times of devices: a nanosecond is shorter than any product, and in 1e10 s, three centuries, every device is gone.
Seconds = Annotated[float, *above_zero(1e-9, 1e10)]
# Times that somebody waits for: a line needs some 10 us for a byte; nobody waits for longer than a week.
Patience = Annotated[float, *above_zero(1e-5, 604_800)]
# Changes of a ratio in a second: from 1e-12, 0.3 % in a century, to a thousandfold within a millisecond.
RatePerSecond = Annotated[float, *signed(1e-12, 1e6)]

Celsius = Annotated[float, Field(ge=-273.15, le=1000)]  # absolute zero; no chip works near 1000 degrees
CelsiusSwing = Annotated[float, *zero_or(1e-6, 1000)]
Microsiemens = Annotated[float, *above_zero(1e-6, 1e6)]  # a picosiemens leaks through any insulator; 1 S is a wire

# Whole numbers: a billion cells on a line, of tiles, or of images are more than anybody has.
Cells = Annotated[int, Field(gt=0, le=10**9)]
Images = Annotated[int, Field(gt=0, le=10**9)]
ReferenceColumns = Annotated[int, Field(ge=0, le=4096)]  # their noise falls with the root: 1.6 % of one column's
Repeats = Annotated[int, Field(gt=0, le=10_000)]  # of one measurement; the error falls with the root
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Baud = Annotated[int, Field(gt=0, le=2**32 - 1)]  # what the protocol can say; TCP has no rate, so that any will do
