"""A PIM board as pimcal's backend: torch's tensors in and out, everything else in `driver`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pimcal.backend import Backend, Capabilities
from pimcal.errors import ConfigError, DataError
from pimcal.patches import PartProduct, Patches, TilePart
from pimcal.shown import one_line
from pimcal.tile_check import Tiles, check_inputs, check_part, check_weights
from pimcal_serial.connection import Connection
from pimcal_serial.driver import Driver
from pimcal_serial.gather import Overlapping
from pimcal_serial.inputs import Int8s, Int32s
from pimcal_serial.messages import BoardInfo, Capability
from pimcal_serial.settings import SerialSettings

if TYPE_CHECKING:
    from torch import Tensor


class Serial(Backend):
    """A board on a serial port, or the virtual one; see `SerialSettings`."""

    def __init__(self, settings: SerialSettings, tiles: Tiles) -> None:
        self._connection = Connection(settings)
        try:
            self._capabilities = _capabilities(self._connection.session.info, tiles)
        except BaseException:
            self._connection.close()
            raise
        self._driver = Driver(self._connection.session)

    @classmethod
    def check_installation(cls) -> str:
        """Which pyserial, and which ports there are. Raises MissingExtraError."""
        from pimcal_serial.transport import list_ports

        ports = ", ".join(entry["port"] for entry in list_ports())  # before the next line: it names a missing extra
        return f"pyserial {importlib.metadata.version('pyserial')}; ports: {ports or 'none'}"

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def program(self, tile: int, weights: Tensor) -> None:
        self._driver.program(tile, self._checked(tile, weights))

    def program_ahead(self, tile: int, weights: Tensor) -> None:
        self._driver.program_ahead(tile, self._checked(tile, weights))

    def _checked(self, tile: int, weights: Tensor) -> Int8s:
        check_weights(self._capabilities, tile, weights)
        return _codes(f"tile {tile}: weights", weights)

    def matmul(self, tile: int, inputs: Tensor) -> Tensor:
        shape = self._driver.shape(tile)
        check_inputs(tile, None if shape is None else shape[0], inputs)
        return _outputs(self._driver.multiply(tile, _codes(f"tile {tile}: inputs", inputs)), inputs)

    def matmul_part(self, tile: int, inputs: Tensor, part: TilePart) -> Tensor:
        return self.matmul_parts([PartProduct(tile, inputs, part)])[0]

    def matmul_patches(self, tile: int, patches: Patches, part: TilePart) -> Tensor:
        if not self._capabilities.patches:
            return super().matmul_patches(tile, patches, part)
        return self.matmul_parts([PartProduct(tile, patches, part)])[0]

    def matmul_parts(self, products: Sequence[PartProduct]) -> list[Tensor]:
        for product in products:
            check_part(product.tile, self._driver.shape(product.tile), product.part)
        found = self._driver.multiply_parts([(p.tile, _sendable(p), p.part) for p in products])
        return [_outputs(outputs, _values(p.inputs)) for p, outputs in zip(products, found, strict=True)]

    def telemetry(self) -> dict[str, float]:
        """The board's readings, and what its link has done since it was opened."""
        readings, session = self._driver.readings(), self._connection.session
        supply_v = None if readings.supply_mv is None else readings.supply_mv / 1000
        uptime_s = None if readings.uptime_ms is None else readings.uptime_ms / 1000
        measured = {"temperature_c": readings.temperature_c, "supply_v": supply_v, "uptime_s": uptime_s}
        counters = session.counters
        return {name: value for name, value in measured.items() if value is not None} | {
            "link_sent_bytes": counters.bytes_sent,
            "link_received_bytes": counters.bytes_received,
            "link_repeats": counters.repeats,
            "link_frames_dropped": session.frames_dropped,
            "link_reopened": counters.reopened,
            "board_restarts": counters.restarts,
        }

    def close(self) -> None:
        self._connection.close()


def _capabilities(board: BoardInfo, tiles: Tiles) -> Capabilities:
    """What the board has; the profile may use less of it. Raises ConfigError where it wants more."""
    name = one_line(f"{board.model or 'board'} {board.serial_number}".strip())
    asked = {"tiles": tiles.count, "rows": tiles.rows, "cols": tiles.cols}
    there = {"tiles": board.tiles, "rows": board.rows, "cols": board.cols}
    for what, wanted in asked.items():
        if wanted is not None and wanted > there[what]:
            key = "count" if what == "tiles" else what
            raise ConfigError(f"{name} has {there[what]} {what}, the profile wants {wanted}; correct tiles.{key}")
    return Capabilities(
        identity=name,
        tiles=tiles.count or board.tiles,
        rows=tiles.rows or board.rows,
        cols=tiles.cols or board.cols,
        weight_bits=board.weight_bits,
        input_bits=board.input_bits,
        output_bits=board.output_bits or None,
        weight_unit="full_scale",
        parts=True,
        patches=Capability.INPUT_BUFFER in board.capabilities,
        firmware=one_line(board.firmware),
        mvm_s=board.mvm_ns / 1e9 if board.mvm_ns else None,
    )


def _sendable(product: PartProduct) -> Int8s | Overlapping:
    inputs, codes = product.inputs, _codes(f"tile {product.tile}: inputs", _values(product.inputs))
    return Overlapping(codes, inputs.rows, inputs.positions) if isinstance(inputs, Patches) else codes


def _values(inputs: Tensor | Patches) -> Tensor:
    return inputs.maps if isinstance(inputs, Patches) else inputs


def _outputs(products: Int32s, like: Tensor) -> Tensor:
    return torch.from_numpy(products).to(like.dtype)


def _codes(what: str, values: Tensor) -> Int8s:
    """Whole numbers as int8 [n, length]. Raises DataError for other values."""
    whole = values.detach().cpu().numpy()
    if not np.isfinite(whole).all():
        raise DataError(f"{what} hold NaN or infinity in {int((~np.isfinite(whole).all(axis=-1)).sum())} vectors")
    codes = whole.astype(np.int8)
    if not np.array_equal(codes, whole):
        raise DataError(f"{what} must be whole numbers of at most 8 bits")
    return np.ascontiguousarray(codes)
