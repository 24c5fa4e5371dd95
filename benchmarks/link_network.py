"""A whole network on the virtual board: accuracy, bytes on the wire, calibration."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from cifar_resnet import images, trained
from torch import Tensor, nn

import pimcal
from pimcal.calibration.estimate import vectors_per_input
from pimcal.device import Device
from pimcal.evaluation import evaluate
from pimcal.metrics import resolve_metric
from pimcal.placement_report import LayerPlacement
from pimcal_serial.frames import encoded_size
from pimcal_serial.inputs import OutputFormat
from pimcal_serial.messages import Mvm, MvmResult

DEPTH = 20
CALIBRATION_IMAGES = 64
QUIET = {"device.simulator.array.noise": None, "device.simulator.array.gain_spread": 0.0}
Data = Sequence[tuple[Tensor, Tensor]]


def test_images(count: int) -> Data:
    x, y = images("test")
    return list(zip(x[:count].split(50), y[:count].split(50), strict=True))


def accuracy(model: nn.Module, data: Data) -> float:
    return 100 * evaluate(model, data, resolve_metric("accuracy")).value


def resnet(count: int) -> dict[str, Any]:
    """Accuracy in percent with inputs, weights and results of 8 bits, without noise."""
    model, data = trained(DEPTH), test_images(count)
    start = time.perf_counter()
    with pimcal.open_device("board_virtual", QUIET) as device:
        found = accuracy(pimcal.deploy(model, device), data)
    seconds, exact = time.perf_counter() - start, accuracy(model, data)
    return {
        "images": count,
        "float": round(exact, 2),
        "8 bits": round(found, 2),
        "difference": round(found - exact, 2),
        "seconds": round(seconds, 1),
        "reached": found >= exact - 1,
    }


def wire_bytes(count: int = 5) -> dict[str, Any]:
    """Bytes that images take on the wire, each a batch of its own, on tiles that are programmed already."""
    model, (x, _) = trained(DEPTH), images("test")
    with pimcal.open_device("board_virtual", QUIET) as device, torch.no_grad():
        net = pimcal.deploy(model, device)
        net(x[:1])  # programs the tiles
        placement = net.placement.with_positions(vectors_per_input(net, x[:1]))
        telemetry = link_bytes(device), link_bytes(device)
        taken = []
        for image in x[1 : 1 + count].split(1):
            before = link_bytes(device)
            net(image)
            taken.append(link_bytes(device) - before - (telemetry[1] - telemetry[0]))
    layers = [layer for layer in placement.layers if layer.on_device]
    baseline = sum(one_by_one(layer, framing()) for layer in layers)
    unframed = sum(one_by_one(layer, 0) for layer in layers)
    return {
        "images": count,
        "bytes_an_image": {"median": statistics.median(taken), "min": min(taken), "max": max(taken)},
        "one_mvm_a_request": baseline,
        "share": round(statistics.median(taken) / baseline, 4),
        "one_mvm_a_request_without_frames": unframed,
        "share_without_frames": round(statistics.median(taken) / unframed, 4),
        "limit": 0.2,
        "reached": max(taken) <= 0.2 * baseline,
    }


def link_bytes(device: Device) -> int:
    readings = device.telemetry()
    return int(readings["link_sent_bytes"] + readings["link_received_bytes"])


def one_by_one(layer: LayerPlacement, head: int) -> int:
    """Bytes of int8 vectors and int16 results; `head` bytes are beside them for each product, both ways together.

    Blocks cut a matrix between its rows alone, so that each reads all columns.
    """
    assert layer.matrix is not None
    assert layer.mvms is not None
    _, rows, cols = layer.matrix
    vectors = layer.mvms // layer.blocks
    return vectors * (rows + layer.blocks * (2 * cols + head))


def framing() -> int:
    """Bytes of request and answer of one product beside vector and result, where COBS adds as little as it can."""
    request, answer = Mvm(np.zeros((0, 1), np.int8)), MvmResult(0, np.zeros((0, 1), np.int32))
    heads = len(request.encode()) + len(answer.encode(OutputFormat.INT16, 0))
    return heads + 2 * encoded_size(0)


def calibration(count: int, seeds: int) -> dict[str, Any]:
    """Accuracy in percent on boards with noise of their own, before and after, against float."""
    model, data = trained(DEPTH), test_images(count)
    batches = images("calibration")[0][:CALIBRATION_IMAGES].split(16)
    clean, before, after = accuracy(model, data), [], []
    for seed in range(seeds):
        with pimcal.open_device("board_virtual", {"device.simulator.array.seed": seed}) as device:
            net = pimcal.deploy(model, device)
            before.append(accuracy(net, data))
            net.apply(pimcal.calibrate(net, batches))
            after.append(accuracy(net, data))
    return {
        "network": f"ResNet-{DEPTH}",
        "images": count,
        "calibration_images": CALIBRATION_IMAGES,
        "clean": round(clean, 2),
        "before": percent(before),
        "after": percent(after),
        "difference": percent([value - clean for value in after]),
        "reached": statistics.fmean(after) >= clean - 1.5,
    }


def percent(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(statistics.fmean(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}
