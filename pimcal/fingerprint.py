"""Hashes that bind a calibration to what it was made with."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def model_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of the tensors of a model's state, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):  # a module's extra state may be anything
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
