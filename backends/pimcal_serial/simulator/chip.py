"""What a virtual board computes with: tiles, input buffer, products. It knows requests, but no line."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from pimcal_serial.frames import Frame, MessageType, PayloadError, Status
from pimcal_serial.inputs import InputFormat, Int8s, OutputFormat, output_size
from pimcal_serial.messages import (
    Capability,
    Mvm,
    MvmGather,
    MvmResult,
    Program,
    ProgramResult,
    Readback,
    ReadbackResult,
    SelfTest,
    Trims,
    WriteBuffer,
)
from pimcal_serial.simulator.array import Cells, Converter, Tile
from pimcal_serial.simulator.settings import BoardSettings

_LARGEST_STEP = 2**24
_NEEDED = {InputFormat.INT4: Capability.INT4_INPUTS, InputFormat.ZERO_SKIPPING: Capability.ZERO_SKIPPING}


def require(condition: bool, status: Status, message: str) -> None:
    """Raise PayloadError unless the condition holds."""
    if not condition:
        raise PayloadError(status, message)


def no_payload(frame: Frame) -> None:
    """Raise PayloadError (BAD_LENGTH) where a request has a payload that has none."""
    require(not frame.payload, Status.BAD_LENGTH, "a payload where none belongs")


class Chip:
    """Weights and what is done with them, since one start of the board.

    `multiplied` counts vectors, `programmed` weights.
    """

    def __init__(self, settings: BoardSettings, capabilities: Capability) -> None:
        self.multiplied = 0
        self.programmed = 0
        self._settings = settings
        self._capabilities = capabilities
        self._converter = Converter(settings.output_bits)
        self._cells = cache(self._make_cells)
        self._tiles: dict[int, Tile] = {}
        self._buffer = np.zeros(settings.buffer_bytes, np.int8)
        self._products_done = 0
        self._now_s = 0.0

    def carry_out(self, frame: Frame, now_s: float) -> bytes:
        """A request's answer. Raises PayloadError with the status of a refusal, which changed nothing."""
        command = _COMMANDS.get(frame.type)
        if command is None:
            raise PayloadError(Status.UNKNOWN_TYPE, f"no request of type {frame.type}")
        self._now_s = now_s
        return command(self, frame)

    # weights

    def _program(self, frame: Frame) -> bytes:
        index, program = self._tile_index(frame), Program.decode(frame.payload)
        tile = self._tiles.get(index)
        going_on = tile is not None and tile.id == program.id
        self._check_programming(program, tile if going_on else None)
        if tile is None or not going_on:
            self._tiles[index] = tile = Tile(self._cells(index), program, self._now_s)
        tile.write(program, self._now_s)
        self.programmed += program.weights.size
        return ProgramResult(tile.missing).encode()

    def _check_programming(self, program: Program, going_on: Tile | None) -> None:
        settings, (count, cols) = self._settings, program.weights.shape
        fits = 1 <= program.rows <= settings.rows and 1 <= cols <= settings.cols
        same = going_on is None or going_on.shape == (program.rows, cols)
        inside = program.first + count <= program.rows
        require(fits and same and inside, Status.OUT_OF_RANGE, "weights lie outside of the tile")
        _check_values(program.weights, settings.weight_bits)

    def _readback(self, frame: Frame) -> bytes:
        asked, tile = Readback.decode(frame.payload), self._usable_tile(frame)
        rows, cols = tile.shape
        require(asked.first + asked.count <= rows, Status.OUT_OF_RANGE, "no such rows")
        self._check_room(4 + asked.count * cols)
        return ReadbackResult(rows, tile.weights[asked.first : asked.first + asked.count]).encode()

    def _selftest(self, frame: Frame) -> bytes:
        """A tile fails where a cell is stuck."""
        no_payload(frame)
        tiles = range(self._settings.tiles if self._settings.array.stuck_cells else 0)
        failed = [tile for tile in tiles if self._cells(tile).stuck.any()]
        return SelfTest(self._settings.tiles, tuple(failed)).encode()

    def _get_trim(self, frame: Frame) -> bytes:
        no_payload(frame)
        return self._usable_tile(frame).trims.encode()

    def _set_trim(self, frame: Frame) -> bytes:
        tile = self._usable_tile(frame)
        tile.trims = Trims.decode(frame.payload, tile.shape[1])
        return b""

    def _make_cells(self, tile: int) -> Cells:
        settings = self._settings
        return Cells(settings.array, tile, (settings.rows, settings.cols), _top(settings.weight_bits))

    def _tile_index(self, frame: Frame) -> int:
        require(frame.tile < self._settings.tiles, Status.OUT_OF_RANGE, f"no tile {frame.tile}")
        return frame.tile

    def _usable_tile(self, frame: Frame) -> Tile:
        tile = self._tiles.get(self._tile_index(frame))
        if tile is None or tile.missing:
            raise PayloadError(Status.NOT_PROGRAMMED, f"tile {frame.tile} lacks rows")
        return tile

    # products

    def _mvm(self, frame: Frame) -> bytes:
        tile, mvm = self._usable_tile(frame), Mvm.decode(frame.payload)
        self._check_inputs(mvm.inputs, mvm.input_format)
        return self._products(tile, mvm, lambda: mvm.inputs, len(mvm.inputs))

    def _write_buffer(self, frame: Frame) -> bytes:
        write = WriteBuffer.decode(frame.payload)
        self._check_inputs(write.values, write.input_format)
        end = write.address + len(write.values)
        require(end <= len(self._buffer), Status.OUT_OF_RANGE, f"the buffer ends at {len(self._buffer)}")
        self._buffer[write.address : end] = write.values
        return b""

    def _mvm_gather(self, frame: Frame) -> bytes:
        tile, gather = self._usable_tile(frame), MvmGather.decode(frame.payload)
        return self._products(tile, gather, lambda: self._gathered(gather), gather.positions)

    def _gathered(self, gather: MvmGather) -> Int8s:
        addresses = gather.addresses()
        inside = not addresses.size or (addresses.min() >= 0 and addresses.max() < len(self._buffer))
        require(bool(inside), Status.OUT_OF_RANGE, "an address lies outside of the buffer")
        return self._buffer[addresses]

    def _products(self, tile: Tile, asked: Mvm | MvmGather, inputs: Callable[[], Int8s], count: int) -> bytes:
        """`inputs` is called when everything else was checked: loops may name more vectors than fit an answer."""
        bits, form = self._settings.output_bits, asked.output_format
        rows, cols = _part(tile, asked)
        self._check_output(form, asked.step)
        self._check_room(4 + count * output_size(1, cols.stop - cols.start, form, bits))
        format_bits = {OutputFormat.INT32: 32, OutputFormat.INT16: 16, OutputFormat.PACKED: bits}[form]
        sums = tile.multiply(inputs(), rows, cols, self._products_done, self._now_s)
        outputs, saturated = self._converter.convert(sums, asked.step, format_bits)
        self._products_done += 1
        self.multiplied += count
        return MvmResult(saturated, outputs).encode(form, bits)

    def _check_inputs(self, values: Int8s, form: InputFormat) -> None:
        able = form not in _NEEDED or _NEEDED[form] in self._capabilities
        require(able, Status.OUT_OF_RANGE, f"no input format {form}")
        _check_values(values, self._settings.input_bits)

    def _check_output(self, form: OutputFormat, step: int) -> None:
        bits = self._settings.output_bits
        packs = bool(bits) and Capability.PACKED_OUTPUTS in self._capabilities
        require(form != OutputFormat.PACKED or packs, Status.OUT_OF_RANGE, "no packed outputs")
        require(1 <= step <= (_LARGEST_STEP if bits else 1), Status.OUT_OF_RANGE, f"no step {step}")

    def _check_room(self, size: int) -> None:
        require(size <= self._settings.max_payload, Status.OUT_OF_RANGE, f"an answer of {size} bytes is too long")


def _part(tile: Tile, asked: Mvm | MvmGather) -> tuple[slice, slice]:
    """Rows and columns of a tile that a product uses."""
    rows = slice(asked.first_row, asked.first_row + asked.rows)
    cols = slice(asked.first_col, asked.first_col + asked.cols if asked.cols else tile.shape[1])
    inside = asked.rows and rows.stop <= tile.shape[0] and cols.start < cols.stop <= tile.shape[1]
    named = f"rows {rows.start}:{rows.stop} and columns {cols.start}:{cols.stop}"
    require(bool(inside), Status.OUT_OF_RANGE, f"{named} are no part of a matrix of {tile.shape[0]} x {tile.shape[1]}")
    return rows, cols


def _top(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _check_values(values: Int8s, bits: int) -> None:
    fits = not values.size or (values.min() >= -_top(bits) and values.max() <= _top(bits))
    require(bool(fits), Status.BAD_VALUE, f"a value is outside of {bits} bits")


_COMMANDS: dict[int, Callable[[Chip, Frame], bytes]] = {
    MessageType.PROGRAM: Chip._program,
    MessageType.READBACK: Chip._readback,
    MessageType.MVM: Chip._mvm,
    MessageType.SELFTEST: Chip._selftest,
    MessageType.GET_TRIM: Chip._get_trim,
    MessageType.SET_TRIM: Chip._set_trim,
    MessageType.WRITE_BUFFER: Chip._write_buffer,
    MessageType.MVM_GATHER: Chip._mvm_gather,
}
