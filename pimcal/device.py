"""An open device: a backend with its profile, guarded against use after close, counting what runs cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pimcal import registry
from pimcal.backend import Backend, Capabilities
from pimcal.drift_compensation import DriftCompensation, mean_magnitude, one_hot_inputs
from pimcal.errors import DeviceUnavailableError
from pimcal.events import DriftCompensated
from pimcal.patches import PartProduct, Patches
from pimcal.profile import Profile, load_profile
from pimcal.quantize import largest_code
from pimcal.tile_check import check_capabilities
from pimcal.tile_lease import TileLeases

_DRIFT = "drift_compensation"  # the device's own part of its state, beside the backend's


@dataclass(slots=True)
class Cost:
    """What runs cost the device.

    `mvms`: matrix-vector products, one a driven block and input vector. `programmed_cells`: cells written.
    `link_bytes`: inputs, weights and outputs of products, were each sent on its own; what a real link carried is in
    its telemetry. `seconds`: wall time of runs.
    """

    mvms: int = 0
    programmed_cells: int = 0
    link_bytes: int = 0
    seconds: float = 0.0

    def since(self, start: Cost) -> Cost:
        """The difference to an earlier copy."""
        return Cost(**{key: value - getattr(start, key) for key, value in asdict(self).items()})

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(**{key: value + getattr(other, key) for key, value in asdict(self).items()})

    def copy(self) -> Cost:
        return Cost(**asdict(self))


def _bytes_each(bits: int | None) -> int:
    return 4 if bits is None else -(-bits // 8)


class Device:
    """A device in use. Open it with `pimcal.open_device`; close it, or use it as a context manager."""

    def __init__(self, backend: Backend, profile: Profile, clock: Callable[[], float] = time.perf_counter) -> None:
        self.backend = backend
        self.profile = profile
        self.capabilities: Capabilities = backend.capabilities
        check_capabilities(self.capabilities)
        self.cost = Cost()
        self._input_bytes = _bytes_each(self.capabilities.input_bits)
        self._output_bytes = _bytes_each(self.capabilities.output_bits)
        self.tiles = TileLeases(self.capabilities.tiles)
        self.resident: dict[int, tuple[int, int]] = {}  # what is on each tile: (owner, load)
        self._clock = clock
        self._closed = False
        self._torch_device = torch.device("cpu")
        # A simulator moves with the network; what has no `to` of its own gets everything on the CPU.
        self._moves = type(backend).to is not Backend.to
        self._drift = DriftCompensation(self._read_out, watching=self.capabilities.drift_compensation)

    def check_open(self) -> None:
        """Raise DeviceUnavailableError after `close`."""
        if self._closed:
            raise DeviceUnavailableError(
                f"device {self.capabilities.identity} is closed; open it again with pimcal.open_device and deploy anew"
            )

    @contextmanager
    def _device_errors(self) -> Iterator[None]:
        """What a driver's own error becomes, so that a lost link is never taken for a fault of the model."""
        try:
            yield
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> DeviceUnavailableError:
        reason = f"{type(error).__name__}: {error}"
        return DeviceUnavailableError(
            f"device {self.capabilities.identity} failed ({reason}); check its link and power"
        )

    def program(self, tile: int, weights: Tensor) -> None:
        """Write `weights` ([rows, cols], device units) to a tile."""
        self._program(self.backend.program, tile, weights)

    def program_ahead(self, tile: int, weights: Tensor) -> None:
        """As `program`, for a tile that is not needed yet; the device may do it while other tiles compute."""
        self._program(self.backend.program_ahead, tile, weights)

    def _program(self, program: Callable[[int, Tensor], None], tile: int, weights: Tensor) -> None:
        self.check_open()
        with self._device_errors():
            program(tile, weights.to(self._torch_device) if self._moves else weights)
        self.cost.programmed_cells += weights.numel()
        self.cost.link_bytes += weights.numel() * _bytes_each(self.capabilities.weight_bits)
        self._drift.programmed(tile, weights.shape[0])

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        """`inputs` ([n, rows]) times a tile: [n, cols], on the torch device of the inputs."""
        outputs, gain = self._multiply(tile, inputs), self._drift.gains.get(tile)
        return outputs if gain is None else outputs * gain

    def matmul_parts(self, products: Sequence[PartProduct]) -> list[Tensor]:
        """Each of `products`, [n, columns], on the torch device of its inputs. See `Backend`."""
        with self._device_errors():
            outputs = self.backend.matmul_parts([self._sent(product) for product in products])
        return [self._received(product, output) for product, output in zip(products, outputs, strict=True)]

    def effective_weights(self, tile: int) -> Tensor:
        """The backend's effective weights of a tile, on the network's torch device."""
        weights, gain = self._effective_weights(tile), self._drift.gains.get(tile)
        return weights if gain is None else weights * gain

    def _multiply(self, tile: int, inputs: Tensor) -> Tensor:
        with self._device_errors():
            return self.backend.matmul(tile, self._here(inputs)).to(inputs.device)

    def _sent(self, product: PartProduct) -> PartProduct:
        inputs = product.inputs
        if isinstance(inputs, Patches):
            return replace(product, inputs=replace(inputs, maps=self._here(inputs.maps)))
        return replace(product, inputs=self._here(inputs))

    def _received(self, product: PartProduct, output: Tensor) -> Tensor:
        inputs, gain = product.inputs, self._drift.gains.get(product.tile)
        output = output.to((inputs.maps if isinstance(inputs, Patches) else inputs).device)
        return output if gain is None else output * gain

    def _here(self, inputs: Tensor) -> Tensor:
        return inputs if self._moves else inputs.cpu()

    def _effective_weights(self, tile: int) -> Tensor:
        try:  # not `_device_errors`: this is the hot path, and a context manager takes as long as all the rest
            weights = self.backend.effective_weights(tile)
        except OSError as error:
            raise self._failed(error) from error
        return weights if self._moves else weights.to(self._torch_device)

    def new_batch(self) -> None:
        """Let the device redraw what it draws for each inference batch."""
        self.check_open()
        self.backend.new_batch()

    def count(self, mvms: int, rows: int, cols: int, vectors: int) -> None:
        """Add a layer's run: `vectors` inputs, each through blocks of `rows` inputs and `cols` outputs in all."""
        self.cost.mvms += mvms
        self.cost.link_bytes += vectors * (rows * self._input_bytes + cols * self._output_bytes)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One inference batch: temporal noise is redrawn at its start, its wall time is counted."""
        self.new_batch()
        with self._timed():
            yield

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count a block's wall time; that of a block within it is not counted twice."""
        start, before = self._clock(), self.cost.seconds
        try:
            yield
        finally:
            self.cost.seconds = before + self._clock() - start

    def advance(self, seconds: float) -> None:
        """Let simulated time pass. Raises ConfigError on a device without a simulated clock.

        Where the profile asks for drift compensation (`capabilities.drift_compensation`), it runs afterwards.
        """
        self.check_open()
        self.backend.advance(seconds)
        if self.capabilities.drift_compensation:
            self.compensate_drift()

    def telemetry(self) -> dict[str, float]:
        """The device's current readings by name and unit."""
        self.check_open()
        return self.backend.telemetry()

    # drift compensation

    def watch_drift(self) -> None:
        """Measure each tile for `compensate_drift`: now those that are programmed, later each as it is programmed.

        Call it right after deploying. A profile that asks for drift compensation needs no such call.
        """
        self.check_open()
        self._drift.watch()

    def compensate_drift(self) -> dict[int, float]:
        """Measure all programmed tiles; from now on their outputs are multiplied by the gains that it returns, by tile.

        A tile that is programmed anew loses its gain. See `pimcal.drift_compensation`; costs one product a row.
        Raises UsageError where a tile was programmed before `watch_drift`, DataError where one answers NaN; no gain is
        changed then.
        """
        self.check_open()
        gains = self._drift.compensate()
        if gains:
            time_s = self.backend.telemetry().get("simulated_time_s")
            registry.emit(DriftCompensated(self.capabilities.identity, gains, time_s))
        return gains

    def clear_drift_compensation(self) -> None:
        """All gains are 1 again, until `compensate_drift` runs once more."""
        self._drift.clear()

    @torch.no_grad()
    def _read_out(self, tile: int, rows: int) -> float:
        """The mean magnitude of a tile's products with one-hot inputs, without its gain."""
        with self._timed():
            outputs = self._one_hot_products(tile, rows)
        self.count(mvms=rows, rows=rows, cols=outputs[0].shape[1], vectors=rows)
        return mean_magnitude(outputs)

    def _one_hot_products(self, tile: int, rows: int) -> list[Tensor]:
        if self.capabilities.effective_weights:
            return [self._effective_weights(tile)]  # the same values, without the products
        bits = self.capabilities.input_bits
        value = 1 if bits is None else largest_code(bits, signed=self.capabilities.signed_inputs)
        where = self._torch_device if self._moves else torch.device("cpu")
        return [self._multiply(tile, inputs) for inputs in one_hot_inputs(rows, value, where)]

    # state

    def state_dict(self) -> dict[str, Any]:
        """A simulator's state with its drift compensation; empty for a real device, which keeps its own state."""
        state = self.backend.state_dict()
        return {**state, _DRIFT: self._drift.state_dict()} if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.check_open()
        self.backend.load_state_dict({key: value for key, value in state.items() if key != _DRIFT})
        self.backend.to(self._torch_device)
        self._drift.load_state_dict(state.get(_DRIFT, {}))

    def to(self, torch_device: torch.device) -> None:
        """Follow the network to a torch device; what is programmed later goes there, too."""
        self._torch_device = torch_device
        self.backend.to(torch_device)

    def close(self) -> None:
        """Release the device; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A device is a thing, not data: copies of a deployed network share it."""
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("an open device cannot be pickled; save the network with torch.save(net.state_dict(), path)")


def open_device(profile: Profile | str | Path, overrides: Mapping[str, object] | None = None) -> Device:
    """Open the device that a profile describes.

    `profile` is a loaded profile, a shipped profile's name, or a YAML file; `overrides` as in `load_profile`.
    Raises ConfigError for a wrong profile or a missing backend, DeviceUnavailableError or DeviceBusyError
    where the device is not to be had.
    """
    if isinstance(profile, str | Path):
        profile = load_profile(str(profile), overrides)
    elif overrides:
        profile = profile.with_overrides(overrides)
    backend_class = registry.backend_class(profile.backend)
    return Device(backend_class(profile.settings, profile.tiles), profile)
