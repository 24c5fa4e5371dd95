"""The contract, for boards on a serial port: exact, with converters, with few bits, with noise, with the least."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from pimcal.backend import Backend
from pimcal.testing import BackendContract
from pimcal_serial.backend import Serial
from pimcal_serial.settings import SerialSettings

AS_ANNOUNCED = SimpleNamespace(count=None, rows=None, cols=None)
SMALL = {"tiles": 3, "rows": 24, "cols": 16}


def virtual(tiles: Any = AS_ANNOUNCED, **simulator: Any) -> Serial:
    settings = {"port": "sim:", "simulator": {**SMALL, **simulator}}
    return Serial(SerialSettings.model_validate_json(json.dumps(settings)), tiles)


class TestExactBoard(BackendContract):
    relative_error = 0.0

    def open_backend(self) -> Backend:
        return virtual()


class TestBoardWithTheLeastThatTheProtocolAllows(TestExactBoard):
    def open_backend(self) -> Backend:
        return virtual(capabilities=[], max_payload=128, window=1, replay=1)


class TestBoardWithOneCell(TestExactBoard):
    def open_backend(self) -> Backend:
        return virtual(rows=1, cols=1, weight_bits=2, max_payload=68)


class TestPartOfABoard(TestExactBoard):
    def open_backend(self) -> Backend:
        return virtual(SimpleNamespace(count=2, rows=12, cols=5))


class TestBoardWithFewBits(TestExactBoard):
    def open_backend(self) -> Backend:
        return virtual(weight_bits=4, input_bits=4)


class TestBoardWithConverters(BackendContract):
    relative_error = 0.02

    def open_backend(self) -> Backend:
        return virtual(output_bits=8)


class TestBoardWithWideConverters(BackendContract):
    relative_error = 1e-3

    def open_backend(self) -> Backend:
        return virtual(output_bits=13, capabilities=[])


class TestNoisyBoard(BackendContract):
    relative_error = 0.2
    repeat_error = 0.1

    def open_backend(self) -> Backend:
        return virtual(output_bits=8, array={"noise": "mul", "eta0": 0.1, "gain_spread": 0.05, "seed": 7})


@pytest.mark.parametrize("key", ["count", "rows", "cols"])
def test_a_profile_that_wants_more_than_the_board_has_is_refused(key: str) -> None:
    wanted = {"count": None, "rows": None, "cols": None, key: 25}
    with pytest.raises(Exception, match=f"the profile wants 25; correct tiles.{key}"):
        virtual(SimpleNamespace(**wanted))
