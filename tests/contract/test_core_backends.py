"""The contract, for the backends that pimcal ships."""

from types import SimpleNamespace

import pytest

from pimcal.backend import Backend
from pimcal.ideal import Ideal, IdealSettings
from pimcal.plain import Plain, PlainSettings
from pimcal.testing import BackendContract
from pimcal_gaussian.backend import Gaussian
from pimcal_gaussian.settings import GaussianSettings, RandomWalkDrift

BOUNDED = SimpleNamespace(count=3, rows=24, cols=16)
SINGLE = SimpleNamespace(count=3, rows=1, cols=1)
UNBOUNDED = SimpleNamespace(count=None, rows=None, cols=None)


class TestIdeal(BackendContract):
    def open_backend(self) -> Backend:
        return Ideal(IdealSettings(), BOUNDED)


class TestUnboundedIdeal(BackendContract):
    def open_backend(self) -> Backend:
        return Ideal(IdealSettings(), UNBOUNDED)


class TestIdealWithOneCell(BackendContract):
    def open_backend(self) -> Backend:
        return Ideal(IdealSettings(), SINGLE)


class TestPlainWithOneCell(BackendContract):
    def open_backend(self) -> Backend:
        return Plain(PlainSettings(weight_bits=2, input_bits=8), SINGLE)


class TestPlain(BackendContract):
    def open_backend(self) -> Backend:
        return Plain(PlainSettings(), BOUNDED)


class TestPlainWithIntegers(BackendContract):
    relative_error = 0.05

    def open_backend(self) -> Backend:
        return Plain(PlainSettings(weight_bits=8, input_bits=8, output_bits=12), BOUNDED)


class TestPlainWithUnsignedInputs(BackendContract):
    def open_backend(self) -> Backend:
        return Plain(PlainSettings(weight_bits=4, input_bits=6, signed_inputs=False), BOUNDED)


class GaussianContract(BackendContract):
    relative_error = 0.2
    settings: GaussianSettings

    def open_backend(self) -> Backend:
        return Gaussian(self.settings, BOUNDED)


class TestMul(GaussianContract):
    settings = GaussianSettings(noise="mul", eta0=0.05, seed=3)


class TestMulPerTileWithoutSpatialNoise(GaussianContract):
    settings = GaussianSettings(noise="mul", eta0=0.05, sigma_spatial=0.0, granularity="tile")


class TestAdd(GaussianContract):
    settings = GaussianSettings(noise="add", eta0=0.02, granularity="device")


class TestAwgn(GaussianContract):
    settings = GaussianSettings(noise="awgn", eta0=0.05, drift=RandomWalkDrift(kind="random_walk", step_s=1.0, std=0.1))


class TestAwgnDrawnAtProgramming(GaussianContract):
    settings = GaussianSettings(noise="awgn", eta0=0.05, redraw="program")


class Careless(Ideal):
    """Breaks one rule a time."""

    def __init__(self, fault: str) -> None:
        super().__init__(IdealSettings(), BOUNDED)
        self._fault = fault

    def program(self, tile, weights):
        if self._fault == "keeps a reference":
            self._columns[tile] = weights.t()
        elif self._fault == "one tile":
            super().program(0, weights)
        else:
            super().program(tile, weights)

    def matmul(self, tile, inputs):
        if self._fault == "one tile":
            tile = 0
        outputs = super().matmul(tile, inputs)
        return outputs * 1.01 if self._fault == "inexact" else outputs


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("keeps a reference", "test_no_reference_to_the_weights_is_kept"),
        ("one tile", "test_tiles_do_not_disturb_one_another"),
        ("inexact", "test_effective_weights_agree_with_the_products"),
    ],
)
def test_the_contract_catches_a_backend_that_breaks_it(fault, rule):
    with pytest.raises(AssertionError):
        getattr(TestIdeal(), rule)(Careless(fault))
