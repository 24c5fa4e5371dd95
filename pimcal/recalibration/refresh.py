"""Gains and offsets of layers from what golden vectors tell of their tiles.

A tile whose products became g * z + o * sum(inputs), as golden vectors tell, changes a layer's output by a gain and, in
the mean over images, by an offset. The sums of inputs come from the digital model on the host, so that the device is
not asked anything more. Undoing both leaves all statistics behind the layer as they were calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pimcal.batches import first_images
from pimcal.calling import call_with, device_of
from pimcal.corrections import Corrections, reference_state
from pimcal.deployment import Deployment
from pimcal.forms import Product
from pimcal.layers import DeviceLayer
from pimcal.placement import Block
from pimcal.recalibration.golden import Answer, Spot
from pimcal.recalibration.probe import Accepted, AcceptedTile, Probe
from pimcal.transforms import check_measurable

_IMAGES = 16  # of the batch; that is enough for a mean over all positions
_LEAST_GAIN = 0.2  # dividing by less would raise noise, not signal


@dataclass(frozen=True, slots=True)
class TileChange:
    """Now a tile answers `gain` * what was accepted + `offset` * sum(inputs)."""

    gain: float
    offset: float


def tile_changes(accepted: Accepted, look: Probe, answers: Mapping[Spot, Answer]) -> dict[Spot, TileChange]:
    """A least-squares fit over all vectors and columns for each tile that `look` found to answer.

    Each change is shrunk by 1 - 1 / score^2 (James and Stein): what may be chance, or comes from a change of shape, is
    not to be passed on to the network.
    """
    found = {}
    for spot in look.of_state("good", "drifted"):
        answer, scores = answers[spot], look.tiles[spot].scores
        assert isinstance(answer, Tensor)  # it would be dead
        found[spot] = _fit(accepted.tiles[spot], answer.mean(0), _trust(scores["gain"]), _trust(scores["offset"]))
    return {spot: change for spot, change in found.items() if change.gain >= _LEAST_GAIN}


def _trust(score: float) -> float:
    return max(0.0, 1 - 1 / score**2) if score else 0.0


def _fit(tile: AcceptedTile, now: Tensor, gain_trust: float, offset_trust: float) -> TileChange:
    before = tile.answers.flatten()
    sums = tile.inputs.double().sum(1)[:, None].expand_as(tile.answers).flatten()
    scale = torch.stack([before.norm(), sums.norm()])  # so that neither counts as nothing beside the other
    columns = torch.stack([before, sums], dim=1) / scale
    # Where the two cannot be told apart (one column), the solution of least norm shares the change between them.
    gain, offset = (torch.linalg.pinv(columns, rtol=1e-6) @ (now.flatten() - before) / scale).tolist()
    return TileChange(1 + gain * gain_trust, offset * offset_trust)


def refreshed_layers(net: Deployment, changes: Mapping[Spot, TileChange], batch: Any) -> Corrections:
    """The layers' gains and offsets that undo `changes`, on top of those in force. `batch`: calibration images."""
    sums, biases = _inputs_seen(net, first_images(batch, _IMAGES))
    return {
        name: _refreshed(layer, changes, sums[name], biases[name])
        for name, layer in net.layers.items()
        if name in sums and any((b.load, b.tile) in changes for b in layer.matrix.placed.blocks)
    }


def _refreshed(
    layer: DeviceLayer, changes: Mapping[Spot, TileChange], sums: Mapping[Block, float], bias: Tensor | None
) -> dict[str, Tensor]:
    """From y = g * (z + b - b) + s + b, as it is now, back to z + b, and then what was in force."""
    matrix = layer.matrix
    gain, added = _columns(layer, changes, sums)
    former = layer.correction
    like = former.gain if former else torch.ones(matrix.view.channels)
    b = torch.zeros_like(like) if bias is None else bias.detach().to(like)
    gain, added = gain.to(like), added.to(like)
    old_gain, old_offset = (former.gain, former.offset) if former else (torch.ones_like(like), torch.zeros_like(like))
    return {"gain": old_gain / gain, "offset": old_gain * (b - (b + added) / gain) + old_offset}


def _columns(
    layer: DeviceLayer, changes: Mapping[Spot, TileChange], sums: Mapping[Block, float]
) -> tuple[Tensor, Tensor]:
    """Each channel's gain, over the tiles that hold its rows, and the mean of what was added to its output."""
    matrix = layer.matrix
    shape, view = matrix.placed.shape, matrix.view
    gain = torch.zeros(shape.groups, shape.cols)
    added = torch.zeros(shape.groups, shape.cols)
    for block in matrix.placed.blocks:
        change = changes.get((block.load, block.tile), TileChange(1.0, 0.0))
        part = block.group, slice(block.first, block.last)
        gain[part] += change.gain * (block.stop - block.start) / shape.rows
        added[part] += change.offset * sums[block] * matrix.unit
    if matrix.differential:  # positive weights in one half of the columns, negative ones in the other
        (gain_up, gain_down), (up, down) = gain.chunk(2, dim=1), added.chunk(2, dim=1)
        gain, added = (gain_up + gain_down) / 2, up - down
    columns_per_channel = gain.numel() // view.channels  # several in a transposed convolution
    if columns_per_channel > 1:
        gain, added = gain.reshape(view.channels, -1).mean(1), torch.zeros(view.channels)
    return gain.flatten(), added.flatten()


@torch.no_grad()
def _inputs_seen(net: Deployment, batch: Any) -> tuple[dict[str, dict[Block, float]], dict[str, Tensor | None]]:
    """By layer: for each block the mean, over images and positions, of the sum of its rows' inputs; and the bias."""
    sums: dict[str, dict[Block, float]] = {}
    biases: dict[str, Tensor | None] = {}

    def see(name: str, product: Product) -> None:
        if name in net.layers and name not in sums:
            check_measurable(name)
            sums[name], biases[name] = _sums(net.layers[name], product.x), product.bias

    with reference_state(net).apart():
        net.products.look(lambda: call_with(net.reference, batch, device_of(net)), see)
    return sums, biases


def _sums(layer: DeviceLayer, x: Tensor) -> dict[Block, float]:
    view, placed = layer.matrix.view, layer.matrix.placed
    x, _ = view.batched(x.float())
    means: dict[tuple[int, int], Tensor] = {}
    for block in placed.blocks:
        rows = block.start, block.stop
        if rows not in means:
            ones = x.new_ones(view.groups, block.stop - block.start, 1)
            means[rows] = _product(layer, x, ones, *rows)
    return {block: float(means[block.start, block.stop][block.group]) for block in placed.blocks}


def _product(layer: DeviceLayer, x: Tensor, ones: Tensor, start: int, stop: int) -> Tensor:
    columns = layer.matrix.view.product(x, ones, start, stop)  # [n, groups, 1, l]
    return columns.mean((0, 2, 3))
