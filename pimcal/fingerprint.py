"""Hashes that bind a calibration to what it was made with."""

from __future__ import annotations

import hashlib

from torch import nn


def model_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of a model's state, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(-1).numpy()).cast("B"))
    return digest.hexdigest()
