"""The rules of `pimcal.backend.Backend` as tests."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pimcal.backend import Backend, Capabilities
from pimcal.errors import PimcalError
from pimcal.patches import Loop, PartProduct, Patches, TilePart
from pimcal.quantize import largest_code
from pimcal.tile_check import check_capabilities


class BackendContract(ABC):
    """Subclass it as `class TestMyBackend(BackendContract)` and implement `open_backend`.

    `relative_error` is how far products may be from the exact ones: root mean square of the difference
    over that of the exact products. Set it to what your device promises. Products of one batch on one
    tile are compared with `repeat_error`: 0 for a simulator, the read noise for a device.
    """

    relative_error = 1e-5
    repeat_error = 0.0

    @abstractmethod
    def open_backend(self) -> Backend:
        """A fresh backend, as a profile would open it. For a simulator: always with the same seed."""

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with self.open_backend() as backend:
            yield backend

    def test_capabilities_make_sense_and_do_not_change(self, backend: Backend) -> None:
        device = backend.capabilities
        limits = [device.tiles, device.rows, device.cols]
        widths = [device.weight_bits, device.input_bits, device.output_bits]
        assert device.identity
        assert all(limit is None or limit >= 1 for limit in limits)
        assert all(bits is None or 1 <= bits <= 64 for bits in widths)
        check_capabilities(device)
        assert device.weight_bits is None or device.weight_unit == "full_scale"
        backend.program(0, weights_for(device))
        assert backend.capabilities == device

    @pytest.mark.parametrize("count", [1, 9])
    def test_products_approximate_the_exact_ones(self, backend: Backend, count: int) -> None:
        weights = weights_for(backend.capabilities)
        inputs = inputs_for(backend.capabilities, len(weights), count)
        backend.program(0, weights)
        backend.new_batch()
        outputs = backend.matmul(0, inputs)
        assert outputs.shape == (count, weights.shape[1])
        assert outputs.dtype == inputs.dtype
        assert relative_error(outputs, inputs @ weights) <= self.relative_error

    def test_a_whole_tile_can_be_used(self, backend: Backend) -> None:
        device = backend.capabilities
        if device.rows is None or device.cols is None:
            pytest.skip("its tiles have no size")
        weights = weights_for(device, device.rows, device.cols)
        inputs = inputs_for(device, device.rows)
        backend.program(0, weights)
        backend.new_batch()
        assert relative_error(backend.matmul(0, inputs), inputs @ weights) <= self.relative_error

    @pytest.mark.parametrize(("more_rows", "more_cols"), [(1, 0), (0, 1)])
    def test_weights_larger_than_a_tile_are_refused(self, backend: Backend, more_rows: int, more_cols: int) -> None:
        device = backend.capabilities
        if (more_rows and device.rows is None) or (more_cols and device.cols is None):
            pytest.skip("its tiles have no limit here")
        weights = weights_for(device, (device.rows or 4) + more_rows, (device.cols or 4) + more_cols)
        with pytest.raises(PimcalError):
            backend.program(0, weights)

    def test_a_tile_that_does_not_exist_is_refused(self, backend: Backend) -> None:
        device = backend.capabilities
        for tile in [-1] if device.tiles is None else [-1, device.tiles]:
            with pytest.raises(PimcalError, match=str(tile)):
                backend.program(tile, weights_for(device))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_weights_that_are_not_finite_are_refused(self, backend: Backend, value: float) -> None:
        weights = weights_for(backend.capabilities)
        weights[-1, -1] = value
        with pytest.raises(PimcalError):
            backend.program(0, weights)

    def test_using_a_tile_before_it_is_programmed_is_refused(self, backend: Backend) -> None:
        with pytest.raises(PimcalError, match="0"):
            backend.matmul(0, inputs_for(backend.capabilities, 4))

    def test_inputs_of_another_length_are_refused(self, backend: Backend) -> None:
        weights = weights_for(backend.capabilities)
        backend.program(0, weights)
        with pytest.raises(PimcalError):
            backend.matmul(0, inputs_for(backend.capabilities, len(weights) + 1))

    def test_programming_again_replaces_the_tile(self, backend: Backend) -> None:
        device = backend.capabilities
        first = weights_for(device)
        second = weights_for(device, first.shape[0] - 1, first.shape[1] - 1, seed=1)
        inputs = inputs_for(device, len(second))
        backend.program(0, first)
        backend.program(0, second)
        backend.new_batch()
        assert relative_error(backend.matmul(0, inputs), inputs @ second) <= self.relative_error

    def test_tiles_do_not_disturb_one_another(self, backend: Backend) -> None:
        device = backend.capabilities
        if device.tiles == 1:
            pytest.skip("it has one tile")
        weights = weights_for(device)
        inputs = inputs_for(device, len(weights))
        backend.program(0, weights)
        backend.new_batch()
        before = backend.matmul(0, inputs)
        backend.program(1, weights_for(device, seed=1))
        backend.matmul(1, inputs)
        assert relative_error(backend.matmul(0, inputs), before) <= self.repeat_error

    def test_no_reference_to_the_weights_is_kept(self, backend: Backend) -> None:
        weights = weights_for(backend.capabilities)
        inputs = inputs_for(backend.capabilities, len(weights))
        backend.program(0, weights)
        backend.new_batch()
        before = backend.matmul(0, inputs)
        weights.zero_()
        assert relative_error(backend.matmul(0, inputs), before) <= self.repeat_error

    def test_weights_and_inputs_are_left_as_they_were(self, backend: Backend) -> None:
        weights = weights_for(backend.capabilities)
        inputs = inputs_for(backend.capabilities, len(weights))
        weights_before, inputs_before = weights.clone(), inputs.clone()
        backend.program(0, weights)
        backend.new_batch()
        backend.matmul(0, inputs)
        assert torch.equal(weights, weights_before)
        assert torch.equal(inputs, inputs_before)

    def test_transposed_weights_and_inputs_are_understood(self, backend: Backend) -> None:
        weights = weights_for(backend.capabilities)
        inputs = inputs_for(backend.capabilities, len(weights))
        backend.program(0, weights.t().contiguous().t())
        backend.new_batch()
        outputs = backend.matmul(0, inputs.t().contiguous().t())
        assert relative_error(outputs, inputs @ weights) <= self.relative_error

    def test_a_part_of_a_tile_multiplies_like_the_tile_with_zeros_elsewhere(self, backend: Backend) -> None:
        device = backend.capabilities
        weights = weights_for(device)
        inputs = inputs_for(device, len(weights))
        rows, cols = weights.shape
        if rows < 3 or cols < 2:
            pytest.skip("its tiles have no parts")
        part = TilePart(1, rows - 2, 1, cols - 1)
        backend.program(0, weights)
        backend.new_batch()
        if not device.parts:
            with pytest.raises(NotImplementedError):
                backend.matmul_part(0, inputs, part)
            return
        driven = inputs.clone()
        driven[:, :1] = driven[:, -1:] = 0
        outputs = backend.matmul_part(0, inputs[:, 1:-1], part)
        assert outputs.shape == (len(inputs), cols - 1)
        assert relative_error(outputs, (driven @ weights)[:, 1:]) <= self.relative_error
        with pytest.raises(PimcalError):
            backend.matmul_part(0, inputs, TilePart(1, rows, 0, cols))

    def test_parts_multiply_together_like_one_after_the_other(self, backend: Backend) -> None:
        device = backend.capabilities
        weights = weights_for(device)
        rows, cols = weights.shape
        if not device.parts or rows < 3 or cols < 2:
            pytest.skip("its tiles have no parts")
        parts = [TilePart(0, rows, 0, cols), *(TilePart(i, rows - 2, i % 2, cols - 1) for i in range(3))]
        tiles = [0] if device.tiles == 1 else [0, 1]
        for tile in tiles:
            backend.program(tile, weights_for(device, seed=tile))
        backend.new_batch()
        inputs = inputs_for(device, rows)
        wanted = [(tile, inputs[:, : part.rows], part) for part in parts for tile in tiles]
        outputs = backend.matmul_parts([PartProduct(*product) for product in wanted])
        exact = [x @ _part_of(weights_for(device, seed=tile), part) for tile, x, part in wanted]
        assert [output.shape for output in outputs] == [product.shape for product in exact]
        together = torch.cat([output.flatten() for output in outputs])
        assert relative_error(together, torch.cat([product.flatten() for product in exact])) <= self.relative_error
        assert backend.matmul_parts([]) == []

    def test_patches_multiply_like_the_vectors_that_they_name(self, backend: Backend) -> None:
        device = backend.capabilities
        if device.rows is not None and device.rows < 12:
            pytest.skip("its tiles are smaller than a patch")
        weights = weights_for(device, 12)
        backend.program(0, weights)
        backend.new_batch()
        maps = inputs_for(device, 7 * 6 * 2, count=3)  # 7 x 6 pixels of 2 channels, under a kernel of 3 x 2
        patches = Patches(maps, (Loop(2, 1), Loop(3, 12), Loop(2, 2)), (Loop(3, 24), Loop(5, 2)))
        part = TilePart(0, weights.shape[0], 0, weights.shape[1])
        if not device.patches:
            with pytest.raises(NotImplementedError):
                backend.matmul_patches(0, patches, part)
            return
        outputs = backend.matmul_patches(0, patches, part)
        assert relative_error(outputs, patches.vectors() @ weights) <= self.relative_error

    def test_effective_weights_agree_with_the_products(self, backend: Backend) -> None:
        weights = weights_for(backend.capabilities)
        inputs = inputs_for(backend.capabilities, len(weights))
        backend.program(0, weights)
        if not backend.capabilities.effective_weights:
            with pytest.raises(NotImplementedError):
                backend.effective_weights(0)
            return
        for _ in range(3):
            backend.new_batch()
            effective = backend.effective_weights(0).clone()
            assert effective.shape == weights.shape
            assert torch.equal(backend.effective_weights(0), effective)
            torch.testing.assert_close(backend.matmul(0, inputs), inputs @ effective)

    def test_only_a_simulated_clock_can_be_advanced(self, backend: Backend) -> None:
        if backend.capabilities.simulated_clock:
            backend.advance(1.5)
            with pytest.raises(PimcalError):
                backend.advance(-1.0)
        else:
            with pytest.raises(PimcalError):
                backend.advance(1.0)

    def test_telemetry_is_numbers_by_name(self, backend: Backend) -> None:
        for name, value in backend.telemetry().items():
            assert isinstance(name, str)
            assert math.isfinite(value)

    def test_a_restored_state_gives_the_same_products(self, backend: Backend) -> None:
        weights = weights_for(backend.capabilities)
        inputs = inputs_for(backend.capabilities, len(weights))
        backend.program(0, weights_for(backend.capabilities, seed=1))
        backend.program(0, weights)
        backend.new_batch()
        state = through_a_file(backend.state_dict())
        if not state:
            pytest.skip("it keeps no state here")
        with self.open_backend() as other:
            other.load_state_dict(state)
            for _ in range(2):
                assert torch.equal(other.matmul(0, inputs), backend.matmul(0, inputs))
                other.new_batch()
                backend.new_batch()

    def test_moving_between_torch_devices_changes_no_value(self, backend: Backend) -> None:
        weights = weights_for(backend.capabilities)
        inputs = inputs_for(backend.capabilities, len(weights))
        backend.program(0, weights)
        backend.new_batch()
        before = backend.matmul(0, inputs)
        for name in ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]:
            backend.to(torch.device(name))
        assert relative_error(backend.matmul(0, inputs), before) <= self.repeat_error

    def test_it_can_be_opened_again_after_it_was_closed(self) -> None:
        for _ in range(2):
            with self.open_backend() as backend:
                backend.program(0, weights_for(backend.capabilities))


def weights_for(device: Capabilities, rows: int | None = None, cols: int | None = None, seed: int = 0) -> Tensor:
    """Weights that `device` can hold, [12, 5] or what fits: codes where it wants codes."""
    rows = rows or min(12, device.rows or 12)
    cols = cols or min(5, device.cols or 5)
    values = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    if device.weight_unit == "full_scale":
        values = values / values.abs().max()
    return _codes(values, device.weight_bits, device.signed_weights)


def inputs_for(device: Capabilities, rows: int, count: int = 7) -> Tensor:
    """`count` input vectors that `device` can take: codes where it wants codes."""
    values = torch.randn(count, rows, generator=torch.Generator().manual_seed(7))
    return _codes(values, device.input_bits, device.signed_inputs)


def _part_of(weights: Tensor, part: TilePart) -> Tensor:
    return weights[part.first_row : part.first_row + part.rows, part.first_col : part.first_col + part.cols]


def relative_error(values: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of `exact`."""
    return float((values - exact).norm() / exact.norm())


def through_a_file(state: dict[str, object]) -> dict[str, object]:
    """`state` saved and loaded again, which only plain values and tensors survive."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, object] = torch.load(file, weights_only=True)
    return loaded


def _codes(values: Tensor, bits: int | None, signed: bool) -> Tensor:
    values = values if signed else values.abs()
    if bits is None:
        return values
    return (values / values.abs().max() * largest_code(bits, signed=signed)).round()
