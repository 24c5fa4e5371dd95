"""The backend contract: what a device, real or simulated, must be able to do.

A backend is a small class around one device. pimcal cuts a network's matrices into tiles, programs them,
and asks for products; everything else stays on the host. `pimcal.testing` holds any backend to these rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pimcal.errors import ConfigError
from pimcal.patches import Patches

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pimcal.patches import PartProduct, TilePart

WeightUnit = Literal["raw", "std", "full_scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a device can hold and compute. `None` means: without limit, or floating point.

    `weight_unit` says what the host divides a layer's weights by before it programs them (and multiplies
    the products by afterwards): `raw` nothing; `std` the standard deviation of the layer's weights;
    `full_scale` their largest magnitude, so that codes lie in [-1, 1], or, where `weight_bits` is set, are
    integers in [-(2^(bits-1) - 1), 2^(bits-1) - 1] (unsigned: [0, 2^bits - 1]).

    Where `input_bits` is set, `matmul` gets integer codes (as floating-point tensors) in the same ranges.
    `output_bits` tells how wide the device's own converters are; the device applies them itself.

    `readable_rows`: of how many rows, all with a full-scale input and weight, the sum is still within the range of the
    converters. The reference columns for the gain then have a constant in that many rows and zeros in the others, so
    that they do not saturate what the other columns need. `None`: of all.

    `parts`: products may use parts of tiles (`matmul_part`, `matmul_parts`). `patches`: vectors that overlap may come
    as patches (`matmul_patches`).

    `drift_compensation`: the profile asks for global drift compensation. The host then measures each tile when it is
    programmed, and compensates all of them whenever the simulated clock has advanced.
    """

    identity: str
    tiles: int | None = None
    rows: int | None = None
    cols: int | None = None
    weight_bits: int | None = None
    input_bits: int | None = None
    output_bits: int | None = None
    signed_weights: bool = True
    signed_inputs: bool = True
    weight_unit: WeightUnit = "raw"
    simulated_clock: bool = False
    effective_weights: bool = False
    readable_rows: int | None = None
    drift_compensation: bool = False
    parts: bool = False
    patches: bool = False
    firmware: str = ""
    mvm_s: float | None = None  # seconds that one matrix-vector product takes, where it is known


class Backend(ABC):
    """One device. Subclasses implement `capabilities`, `program` and `matmul`; the rest has defaults.

    A backend is constructed as `BackendClass(settings, tiles)`: the validated `device:` part of the
    profile (an instance of the settings model it was registered with) and the profile's `tiles:` part.
    """

    def __init__(self, settings: Any, tiles: Any) -> None:  # noqa: B027 - a backend may need neither
        """`settings`: the validated `device:` part; `tiles`: `count`, `rows`, `cols`, None where unbounded."""

    @classmethod
    def check_installation(cls) -> str:
        """Try what this backend needs from the machine; returns what was found, for `pimcal doctor`.

        Raises ConfigError, MissingExtraError.
        """
        return ""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the device can do; constant while it is open."""

    @abstractmethod
    def program(self, tile: int, weights: Tensor) -> None:
        """Write `weights` ([rows, cols], device units, float32) to a tile; may be slow and inexact.

        The shape may be smaller than the tile. The tile's former content is gone. The backend must not
        keep a reference to `weights`: the caller may change it afterwards.
        """

    def program_ahead(self, tile: int, weights: Tensor) -> None:
        """As `program`, for a tile that no product uses until its weights are there.

        A device that can write one tile while others compute returns at once, and the tile's next product waits for
        the weights. What fails meanwhile is raised by a later call.
        """
        self.program(tile, weights)

    @abstractmethod
    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        """Multiply `inputs` ([n, rows], rows as programmed) by the tile: [n, cols]. The only hot call.

        Inputs are on the CPU, unless the backend implements `to`: then they are where `to` sent it last. Devices
        with converters of their own answer in product units: codes of weights times codes of inputs, in the
        converter's steps and within its range.
        """

    def matmul_part(self, tile: int, inputs: Tensor, part: TilePart) -> Tensor:
        """As `matmul`, for a part of the tile: `inputs` [n, part.rows] to [n, part.cols]; all other rows get 0.

        For devices to which less has to travel then; they set `capabilities.parts`.
        """
        raise NotImplementedError(f"{type(self).__name__} announces no products on parts of tiles")

    def matmul_patches(self, tile: int, patches: Patches, part: TilePart) -> Tensor:
        """As `matmul_part` of `patches.vectors()`, which are never made unless the backend does so.

        For devices that can gather vectors from a map; they set `capabilities.patches`. Unless they also set `parts`
        the part is always all that was programmed.
        """
        raise NotImplementedError(f"{type(self).__name__} announces no products of patches")

    def matmul_parts(self, products: Sequence[PartProduct]) -> list[Tensor]:
        """What `matmul_part` or `matmul_patches` give for each of `products`, which do not depend on one another.

        A depthwise layer has hundreds of small blocks: a device that can do better than one after the other does it
        here. It may also leave out columns that nobody asks for (`PartProduct.ends`).
        """
        return [
            self.matmul_patches(product.tile, product.inputs, product.part)
            if isinstance(product.inputs, Patches)
            else self.matmul_part(product.tile, product.inputs, product.part)
            for product in products
        ]

    def new_batch(self) -> None:  # noqa: B027 - most devices have nothing to do here
        """A new inference batch begins; simulators redraw their temporal noise, once per batch.

        A calibration takes turns between its batches and calls this at every turn, so it may be called often.
        """

    def advance(self, seconds: float) -> None:
        """Let `seconds` of simulated time pass. Real devices have no such clock and refuse."""
        raise ConfigError(f"{self.capabilities.identity} has no simulated clock to advance")

    def telemetry(self) -> dict[str, float]:
        """Current readings by name and unit, e.g. `{"temperature_c": 41.5}`; empty where there are none."""
        return {}

    def effective_weights(self, tile: int) -> Tensor:
        """The weights ([rows, cols], device units) that this batch's products on `tile` use, errors included.

        Only for simulators whose whole error lies in the weights; they set `capabilities.effective_weights`.
        The host then runs its own kernels on them. The result may be reused by the next call: do not change it.
        """
        raise NotImplementedError(f"{type(self).__name__} announces no effective weights")

    def state_dict(self) -> dict[str, Any]:
        """A simulator's whole state (tensors and plain values) so that it can be restored exactly.

        Tensors may come back on another torch device; `to` is called after `load_state_dict`.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore what `state_dict` gave. Real devices keep their own state and ignore it."""

    def to(self, torch_device: torch.device) -> None:  # noqa: B027
        """Move a simulator's tensors to a torch device, without changing any value."""

    def close(self) -> None:  # noqa: B027
        """Release the device. Called once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
