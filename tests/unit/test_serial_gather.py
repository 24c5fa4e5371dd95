"""Overlapping vectors by way of a board's input buffer."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pimcal.patches import Loop, TilePart
from pimcal_serial.connection import Connection
from pimcal_serial.driver import Driver
from pimcal_serial.frames import MessageType
from pimcal_serial.gather import Overlapping, bands, boxes, buffer_format, write_spans
from pimcal_serial.inputs import InputFormat
from pimcal_serial.messages import BoardInfo, Capability
from pimcal_serial.settings import SerialSettings

BOARD = BoardInfo(buffer_bytes=4096, max_payload=512, capabilities=Capability.INPUT_BUFFER | Capability.ZERO_SKIPPING)


def connected(**simulator: Any) -> Connection:
    board = {"tiles": 2, "rows": 96, "cols": 40, "max_payload": 512, **simulator}
    part = {"port": "sim:", "margin_s": 0.05, "simulator": board}
    return Connection(SerialSettings.model_validate_json(json.dumps(part)))


def maps_of(n: int, height: int, width: int, channels: int, seed: int = 0, zeros: float = 0.5) -> np.ndarray:
    generator = np.random.default_rng(seed)
    maps = generator.integers(-127, 128, (n, height * width * channels)).astype(np.int8)
    maps[generator.random(maps.shape) < zeros] = 0
    return maps


def overlapping(n: int, height: int, width: int, channels: int, kernel: int, stride: int = 1) -> Overlapping:
    """A convolution's patches of images [n, height, width, channels]."""
    row = width * channels
    out = [(size - kernel) // stride + 1 for size in (height, width)]
    return Overlapping(
        maps_of(n, height, width, channels),
        (Loop(channels, 1), Loop(kernel, row), Loop(kernel, channels)),
        (Loop(out[0], row * stride), Loop(out[1], channels * stride)),
    )


@st.composite
def convolutions(draw: st.DrawFn) -> Overlapping:
    kernel = draw(st.integers(1, 3))
    sizes = [draw(st.integers(kernel, 9)) for _ in range(2)]
    return overlapping(draw(st.integers(1, 4)), *sizes, draw(st.integers(1, 10)), kernel, draw(st.integers(1, 3)))


def exact(patches: Overlapping, weights: np.ndarray) -> np.ndarray:
    """The products, patch by patch."""
    flat = patches.maps.astype(np.int64)
    products = []
    for image in flat:
        for y in range(patches.positions[0].count):
            for x in range(patches.positions[1].count):
                at = y * patches.positions[0].stride + x * patches.positions[1].stride
                c, ky, kx = (np.arange(loop.count) * loop.stride for loop in patches.rows)
                patch = image[at + c[:, None, None] + ky[:, None] + kx]
                products.append(patch.ravel() @ weights)
    return np.array(products)


def weights_of(patches: Overlapping, cols: int) -> np.ndarray:
    rows = prod(loop.count for loop in patches.rows)
    return np.random.default_rng(1).integers(-127, 128, (rows, cols)).astype(np.int8)


# --- what is planned


@given(convolutions(), st.integers(200, 6000))
def test_bands_hold_every_vector_once_and_fit_their_segment(patches: Overlapping, buffer_bytes: int) -> None:
    found = bands(replace(BOARD, buffer_bytes=buffer_bytes), patches)
    if found is None:
        return
    reach = 1 + sum((loop.count - 1) * loop.stride for loop in patches.rows)
    assert [band.first for band in found] == [0, *(band.last for band in found[:-1])]
    assert found[-1].last == len(patches)
    for band in found:
        assert band.size <= (buffer_bytes if len(found) == 1 else buffer_bytes // 3)
        assert band.last - band.first == prod(loop.count for loop in band.grid)
        assert sum((loop.count - 1) * loop.stride for loop in band.grid) + reach <= band.size


def test_a_row_of_patches_that_does_not_fit_the_buffer_cannot_be_planned() -> None:
    assert bands(replace(BOARD, buffer_bytes=100), overlapping(1, 8, 8, 4, 3)) is None


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 40))
def test_boxes_go_through_a_grid_in_order(counts: list[int], room: int) -> None:
    strides = [1000, 50, 2][-len(counts) :]
    grid = [Loop(*loop) for loop in zip(counts, strides, strict=True)]
    everything = [0]
    for loop in grid:
        everything = [at + i * loop.stride for at in everything for i in range(loop.count)]
    visited = []
    for start, loops in boxes(grid, lambda: room):
        box = [start]
        for loop in loops:
            box = [at + i * loop.stride for at in box for i in range(loop.count)]
        assert len(box) <= max(1, room)
        visited += box
    assert visited == everything


@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(80, 600))
def test_writes_fit_their_payload_and_leave_nothing_out(seed: int, zeros: float, payload: int) -> None:
    values = maps_of(1, 20, 20, 3, seed, zeros)[0]
    form = buffer_format(BOARD, values)
    spans = list(write_spans(values, form, lambda: payload))
    assert [span[0] for span in spans] == [0, *(span[1] for span in spans[:-1])]
    assert spans[-1][1] == len(values)
    for first, last in spans:
        nonzero = np.count_nonzero(values[first:last])
        size = -(-(last - first) // 8) + nonzero if form == InputFormat.ZERO_SKIPPING else last - first
        assert 8 + size <= payload


# --- what a board makes of it


@settings(deadline=None, max_examples=25)
@given(convolutions(), st.sampled_from([400, 1500, 65536]), st.sampled_from([0, 8]))
def test_products_of_patches_equal_those_of_their_vectors(
    patches: Overlapping, buffer_bytes: int, output_bits: int
) -> None:
    weights = weights_of(patches, 7)
    with connected(buffer_bytes=buffer_bytes, output_bits=output_bits) as connection:
        driver = Driver(connection.session)
        driver.program(0, weights)
        part = TilePart(0, len(weights), 0, 7)
        found = driver.multiply_patches(0, patches, part)
        assert np.array_equal(found, driver.multiply(0, patches.vectors(), part))
        if not output_bits:
            assert np.array_equal(found, exact(patches, weights))


def test_a_part_of_a_tile_gets_the_patches() -> None:
    patches = overlapping(2, 7, 6, 5, 3)
    weights = weights_of(patches, 12)
    tile = np.random.default_rng(2).integers(-127, 128, (len(weights) + 20, 30)).astype(np.int8)
    tile[10 : 10 + len(weights), 5:17] = weights
    with connected() as connection:
        driver = Driver(connection.session)
        driver.program(1, tile)
        found = driver.multiply_patches(1, patches, TilePart(10, len(weights), 5, 12))
    assert np.array_equal(found, exact(patches, weights))


@pytest.mark.parametrize(
    "faults",
    [
        {"lost": 0.1},
        {"corrupted": 0.1},
        {"lost": 0.05, "duplicated": 0.1, "reordered": 0.05},
        {"reset_at": [40, 90]},
        {"unplug_at": [50], "unplugged_s": 0.01},
    ],
    ids=lambda faults: "+".join(faults),
)
@pytest.mark.parametrize("seed", range(3))
def test_products_of_patches_are_right_on_a_bad_link(faults: dict[str, Any], seed: int) -> None:
    patches = overlapping(6, 12, 12, 8, 3)
    weights = weights_of(patches, 16)
    with connected(buffer_bytes=3000, faults={**faults, "seed": seed}) as connection:
        driver = Driver(connection.session)
        driver.program(0, weights)
        found = driver.multiply_patches(0, patches, TilePart(0, len(weights), 0, 16))
        counters = connection.session.counters
    assert np.array_equal(found, exact(patches, weights))
    assert counters.repeats or counters.restarts or counters.reopened


def test_patches_cross_the_link_once() -> None:
    patches = overlapping(4, 16, 16, 8, 3)
    weights = weights_of(patches, 8)
    with connected(output_bits=8) as connection:
        driver, counters = Driver(connection.session), connection.session.counters
        part = TilePart(0, len(weights), 0, 8)
        driver.program(0, weights)
        before = counters.bytes_sent
        driver.multiply_patches(0, patches, part)
        gathered, before = counters.bytes_sent - before, counters.bytes_sent
        driver.multiply(0, patches.vectors(), part)
        assert gathered < (counters.bytes_sent - before) / 5
    assert gathered < 1.3 * (patches.maps.size / 8 + np.count_nonzero(patches.maps))


# --- weights between products


def test_weights_travel_between_the_products_of_another_tile() -> None:
    generator = np.random.default_rng(3)
    first, second = (generator.integers(-127, 128, (96, 40)).astype(np.int8) for _ in range(2))
    inputs = generator.integers(-127, 128, (300, 96)).astype(np.int8)
    with connected() as connection:
        driver = Driver(connection.session)
        driver.program(0, first)
        driver.program_ahead(1, second)
        sent = []
        request_many = connection.session.request_many
        connection.session.request_many = lambda requests: request_many(_noted(requests, sent))  # type: ignore[method-assign]
        assert np.array_equal(driver.multiply(0, inputs), inputs.astype(np.int64) @ first)
        assert {MessageType.MVM, MessageType.PROGRAM} == set(sent)
        sent.clear()
        assert np.array_equal(driver.multiply(1, inputs), inputs.astype(np.int64) @ second)
        assert set(sent) == {MessageType.MVM}


def test_weights_that_found_no_product_to_travel_with_are_there_when_they_are_used() -> None:
    weights = np.eye(40, dtype=np.int8)
    with connected() as connection:
        driver = Driver(connection.session)
        driver.program_ahead(0, weights)
        assert np.array_equal(driver.readback(0), weights)
        driver.program_ahead(0, 2 * weights)
        assert np.array_equal(driver.multiply(0, weights), 2 * weights)


@pytest.mark.parametrize("faults", [{"lost": 0.1}, {"reset_at": [30, 60]}], ids=lambda faults: "+".join(faults))
def test_programming_ahead_survives_a_bad_link(faults: dict[str, Any]) -> None:
    generator = np.random.default_rng(4)
    tiles = [generator.integers(-127, 128, (96, 40)).astype(np.int8) for _ in range(6)]
    inputs = generator.integers(-127, 128, (60, 96)).astype(np.int8)
    with connected(faults=faults) as connection:
        driver = Driver(connection.session)
        driver.program(0, tiles[0])
        for i, weights in enumerate(tiles[1:], 1):
            driver.program_ahead(i % 2, weights)
            assert np.array_equal(driver.multiply(1 - i % 2, inputs), inputs.astype(np.int64) @ tiles[i - 1])
        assert np.array_equal(driver.multiply(1, inputs), inputs.astype(np.int64) @ tiles[-1])


def _noted(requests: Any, kinds: list[MessageType]) -> Any:
    for request in requests:
        kinds.append(request.kind)
        yield request
