"""The demo's network: a residual BatchNorm network for 8x8 digits, so deep that analog errors add up."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("digits.safetensors")


def load_network() -> DigitsNetwork:
    """The network with the weights that are shipped (`train.py` made them), in evaluation mode."""
    network = DigitsNetwork()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


class DigitsNetwork(nn.Module):
    """Images `[n, 1, 8, 8]` (float32, as `digits.load_digits` gives them) to logits `[n, 10]`.

    A stem and three stages of residual blocks, 25 convolutions along the longest path and 2 more on the
    shortcuts; the resolution halves and the width doubles from stage to stage. Source: He et al., "Deep
    residual learning for image recognition" (section 4.2), with projections (option B) where shapes change.
    """

    def __init__(self, width: int = 12, blocks_per_stage: int = 4) -> None:
        super().__init__()
        self.stem = _convolution(1, width, stride=1)
        self.stages = nn.Sequential(
            _stage(width, width, blocks_per_stage, stride=1),
            _stage(width, 2 * width, blocks_per_stage, stride=2),
            _stage(2 * width, 4 * width, blocks_per_stage, stride=2),
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stages(F.relu(self.stem(images)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class _Residual(nn.Module):
    """Two 3x3 convolutions whose result is added to the block's input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(in_channels, out_channels, stride)
        self.second = _convolution(out_channels, out_channels, stride=1)
        same_shape = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same_shape else _convolution(in_channels, out_channels, stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Residual(in_channels, out_channels, stride)
    return nn.Sequential(first, *(_Residual(out_channels, out_channels, stride=1) for _ in range(blocks - 1)))


def _convolution(in_channels: int, out_channels: int, stride: int, size: int = 3) -> nn.Sequential:
    """A convolution without bias (BatchNorm has its own), then BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )
