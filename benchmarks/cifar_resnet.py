"""ResNets for CIFAR-10 (He et al. 2015, section 4.2, shortcuts without parameters), and the shared data for them.

Usable as a model spec: `--model benchmarks/cifar_resnet.py:resnet20`. Weights and images come from the folder
`../shared/data/cifar10` or `$PIMCAL_DATA/cifar10`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut takes every other pixel and pads channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """6n + 2 layers in three stages of 16, 32 and 64 channels."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20() -> nn.Module:
    return CifarResNet(20)


def resnet56() -> nn.Module:
    return CifarResNet(56)


def data_folder() -> Path:
    """Where the shared CIFAR-10 files are; SystemExit with a remedy where they are not."""
    root = Path(os.environ.get("PIMCAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    folder = root / "cifar10"
    if not folder.is_dir():
        raise SystemExit(f"{folder} does not exist; set PIMCAL_DATA to the folder that holds cifar10/")
    return folder


def trained(depth: int) -> nn.Module:
    """ResNet-20 or ResNet-56 with the shared weights."""
    from pimcal.sources.models import load_model

    return load_model(f"{__file__}:resnet{depth}", data_folder() / f"resnet{depth}.safetensors")


def images(name: str) -> tuple[Tensor, Tensor]:
    """Normalised images [n, 3, 32, 32] and labels [n] of `test` or `calibration`."""
    with np.load(data_folder() / f"{name}.npz") as file:
        pixels, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    x = pixels.permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x.contiguous(), labels.long()
