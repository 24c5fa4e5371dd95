"""An open device: a backend with its profile, guarded against use after close, counting what runs cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pimcal import registry
from pimcal.backend import Backend, Capabilities
from pimcal.errors import DeviceUnavailableError
from pimcal.profile import Profile, load_profile
from pimcal.tile_check import check_capabilities


@dataclass(slots=True)
class Cost:
    """What runs cost the device.

    `mvms`: matrix-vector products, one a driven block and input vector. `programmed_cells`: cells written.
    `link_bytes`: inputs, weights and outputs that crossed to the device and back. `seconds`: wall time of runs.
    """

    mvms: int = 0
    programmed_cells: int = 0
    link_bytes: int = 0
    seconds: float = 0.0

    def since(self, start: Cost) -> Cost:
        """The difference to an earlier copy."""
        return Cost(**{key: value - getattr(start, key) for key, value in asdict(self).items()})

    def copy(self) -> Cost:
        return Cost(**asdict(self))


def _bytes(elements: int, bits: int | None) -> int:
    return elements * (4 if bits is None else -(-bits // 8))


class Device:
    """A device in use. Open it with `pimcal.open_device`; close it, or use it as a context manager."""

    def __init__(self, backend: Backend, profile: Profile, clock: Callable[[], float] = time.perf_counter) -> None:
        self.backend = backend
        self.profile = profile
        self.capabilities: Capabilities = backend.capabilities
        check_capabilities(self.capabilities)
        self.cost = Cost()
        self.owners = itertools.count()  # numbers those who program the device
        self.resident: tuple[int, int] | None = None  # whose load is on the tiles: (owner, load)
        self._clock = clock
        self._closed = False
        self._torch_device = torch.device("cpu")
        # A simulator moves with the network; what has no `to` of its own gets everything on the CPU.
        self._moves = type(backend).to is not Backend.to

    def check_open(self) -> None:
        """Raise DeviceUnavailableError after `close`."""
        if self._closed:
            raise DeviceUnavailableError(
                f"device {self.capabilities.identity} is closed; open it again with pimcal.open_device and deploy anew"
            )

    def _failed(self, error: OSError) -> DeviceUnavailableError:
        """What a driver's own error becomes, so that a lost link is never taken for a fault of the model."""
        reason = f"{type(error).__name__}: {error}"
        return DeviceUnavailableError(
            f"device {self.capabilities.identity} failed ({reason}); check its link and power"
        )

    def program(self, tile: int, weights: Tensor) -> None:
        """Write `weights` ([rows, cols], device units) to a tile."""
        self.check_open()
        try:
            self.backend.program(tile, weights.to(self._torch_device) if self._moves else weights)
        except OSError as error:
            raise self._failed(error) from error
        self.cost.programmed_cells += weights.numel()
        self.cost.link_bytes += _bytes(weights.numel(), self.capabilities.weight_bits)

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        """`inputs` ([n, rows]) times a tile: [n, cols], on the torch device of the inputs."""
        here = inputs if self._moves else inputs.cpu()
        try:
            return self.backend.matmul(tile, here).to(inputs.device)
        except OSError as error:
            raise self._failed(error) from error

    def effective_weights(self, tile: int) -> Tensor:
        """The backend's effective weights of a tile, on the network's torch device."""
        try:
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
        self.cost.link_bytes += _bytes(vectors * rows, self.capabilities.input_bits)
        self.cost.link_bytes += _bytes(vectors * cols, self.capabilities.output_bits)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One inference batch: temporal noise is redrawn at its start, its wall time is counted."""
        self.new_batch()
        start = self._clock()
        try:
            yield
        finally:
            self.cost.seconds += self._clock() - start

    def advance(self, seconds: float) -> None:
        """Let simulated time pass. Raises ConfigError on a device without a simulated clock."""
        self.check_open()
        self.backend.advance(seconds)

    def telemetry(self) -> dict[str, float]:
        """The device's current readings by name and unit."""
        self.check_open()
        return self.backend.telemetry()

    def state_dict(self) -> dict[str, Any]:
        return self.backend.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.check_open()
        self.backend.load_state_dict(state)
        self.backend.to(self._torch_device)

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
