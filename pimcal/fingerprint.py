"""Hashes that bind a calibration to what it was made with."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


def model_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of the tensors of a model's state, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items(), key=lambda item: item[0]):
        if isinstance(tensor, Tensor):  # a module's extra state may be anything
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}{_layout(tensor)}\n".encode())
            for part in _parts(tensor.detach()):
                digest.update(_bytes_of(part))
    return digest.hexdigest()


def checksum(tensor: Tensor) -> int:
    """Of a tensor's values, to tell whether they are still the same; quick, and not safe against intent."""
    found = 0
    for part in _parts(tensor.detach()):
        found = zlib.crc32(_bytes_of(part), found)
    return found


def _bytes_of(part: Tensor) -> memoryview:
    plain = part.cpu().resolve_conj().resolve_neg().contiguous().flatten()
    return plain.view(torch.uint8).numpy().data


def _layout(tensor: Tensor) -> str:
    return "" if tensor.layout == torch.strided else f" {tensor.layout}"


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The dense tensors that a tensor is made of, whatever its layout."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        yield from (tensor.indices(), tensor.values())
    elif tensor.layout in _COMPRESSED:
        yield from (getattr(tensor, part)() for part in _COMPRESSED[tensor.layout])
        yield tensor.values()
    elif tensor.is_mkldnn:
        yield tensor.to_dense()
    elif tensor.is_quantized:
        yield tensor.int_repr()
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)
        else:
            yield from (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
    else:
        yield tensor
