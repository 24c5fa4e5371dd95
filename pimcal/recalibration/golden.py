"""Golden vectors: fixed inputs of each tile, and what the tile answers to them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pimcal.backend import Capabilities
from pimcal.calling import device_of
from pimcal.deployment import Deployment
from pimcal.draws import key_of
from pimcal.errors import DeviceBusyError, DeviceUnavailableError, PimcalError
from pimcal.quantize import largest_code
from pimcal.references import correct

Spot = tuple[int, int]  # load and tile, as in `TileArray.layouts`
Answer = Tensor | str  # [draws, vectors, cols]; or why there is none

VECTORS = 2


def golden_inputs(net: Deployment) -> dict[Spot, Tensor]:
    """The golden vectors [2, rows] of the tiles that hold something of `net` now, in device units.

    They depend on the model and the tile alone. Of a network that takes several turns on the device these are the
    tiles of its last turns: to see the others they would have to be programmed, which costs more than it tells.
    """
    seed = int(net.model_hash[:16], 16)
    spots = sorted((load, tile) for tile, load in net.array.resident.items())
    layouts, capabilities = net.array.layouts, net.device.capabilities
    return {spot: golden_vectors(key_of(seed, *spot), layouts[spot].rows, capabilities) for spot in spots}


def golden_vectors(key: int, rows: int, capabilities: Capabilities) -> Tensor:
    """Two inputs [2, rows]: magnitudes as behind a ReLU, and full scale on some rows.

    The first is max(0, N(0, 1)), three standard deviations being full scale. The second drives at random half of the
    rows, or as many as the converters can read. None is negative, so that what an array adds to every weight shows.
    """
    generator = torch.Generator().manual_seed(key)
    bits = capabilities.input_bits
    top = float(largest_code(bits, signed=capabilities.signed_inputs)) if bits else 1.0
    realistic = torch.randn(rows, generator=generator).div(3).clamp(0, 1)
    driven = max(1, min(-(-rows // 2), capabilities.readable_rows or rows))
    full = torch.zeros(rows)
    full[torch.randperm(rows, generator=generator)[:driven]] = 1.0
    if not realistic.any():  # a tile of very few rows
        realistic = full / 3
    vectors = torch.stack([realistic, full]) * top
    return vectors.round() if bits else vectors


def products(inputs: Mapping[Spot, Tensor], draws: int) -> int:
    """How many matrix-vector products `ask` takes."""
    return draws * sum(len(vectors) for vectors in inputs.values())


@torch.no_grad()
def ask(net: Deployment, inputs: Mapping[Spot, Tensor], draws: int) -> dict[Spot, Answer]:
    """What the tiles answer, each asked `draws` times: [draws, vectors, cols], references already applied.

    Each question is an inference batch of its own, so that no two share temporal noise: neither two draws of a tile
    nor two tiles, even where the device fluctuates as a whole. A tile that fails is not asked again.

    Raises DeviceUnavailableError, DeviceBusyError where the whole device is gone.
    """
    answers: dict[Spot, list[Tensor]] = {spot: [] for spot in inputs}
    here = device_of(net)
    failed: dict[Spot, Answer] = {}
    for _ in range(draws):
        for spot, vectors in inputs.items():
            if spot not in failed:
                try:
                    answers[spot].append(_ask_once(net, spot, vectors, here))
                except (DeviceUnavailableError, DeviceBusyError):
                    raise
                except PimcalError as error:
                    failed[spot] = str(error)
    return {spot: failed[spot] if spot in failed else torch.stack(found) for spot, found in answers.items()}


def _ask_once(net: Deployment, spot: Spot, vectors: Tensor, here: torch.device) -> Tensor:
    device, array = net.device, net.array
    with device.batch():
        raw = device.matmul(spot[1], vectors.to(here))
    device.count(len(vectors), vectors.shape[1], raw.shape[1], len(vectors))
    return _referenced(net, spot, raw.cpu().double(), vectors) if array.references.count else raw.cpu().double()


def _referenced(net: Deployment, spot: Spot, raw: Tensor, vectors: Tensor) -> Tensor:
    """The columns as the network sees them: corrected by the tile's reference columns, which follow them."""
    layout = net.array.layouts[spot]
    known = vectors[:, :: layout.step].sum(1).double() * layout.constant
    one_block = raw[:, None, :, None]  # [n, groups, cols, l]
    return correct(one_block, known[:, None, None, None], torch.zeros(1, dtype=torch.int64), net.array.references)[
        :, 0, :, 0
    ]
