"""Calling a model, digital or deployed, with a batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn

from pimcal.attention import own_attention
from pimcal.batches import moved, split_batch
from pimcal.blame import blamed_on


def device_of(model: nn.Module) -> torch.device:
    """Where a model's own tensors are."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def call_with(model: Callable[..., Any], batch: Any, device: torch.device) -> Any:
    """Call a model with a batch's inputs, on `device`, without gradients and torch's shortcuts around its layers.

    The model gets copies: what it does to them, others do not see.

    Raises UsageError for whatever the model's own code raises, with its place.
    """
    args, kwargs, _ = split_batch(batch)
    with torch.no_grad(), own_attention(), blamed_on("the model"):
        return model(*moved(args, device), **moved(kwargs, device))
