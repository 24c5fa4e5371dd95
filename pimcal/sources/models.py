"""Build the digital model that a spec names, with its weights, ready for inference."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pimcal.blame import location
from pimcal.calling import arguments, call_with, device_of
from pimcal.errors import ConfigError, DataError, MissingExtraError, PimcalError, UsageError
from pimcal.sources.checkpoints import read_checkpoint
from pimcal.sources.objects import UserObject, resolve
from pimcal.sources.weights import load_weights
from pimcal.suggest import did_you_mean

_log = logging.getLogger(__name__)
_TORCHVISION = "torchvision:"


def load_model(spec: str, weights: Path | None = None, tell: Callable[[str], None] = _log.warning) -> nn.Module:
    """The model that `spec` names, in eval mode, with the weights in `weights` where given.

    Args:
        spec: `pkg.mod:name` or `file.py:name`, a class or function callable without arguments or an
            `nn.Module` (which is copied); or `torchvision:NAME`, built untrained and without a download.
        weights: safetensors, a torch file that loads with `weights_only=True`, the index of several, or their folder.
        tell: is called with what was stripped from the weights' names or ignored.

    Raises:
        UsageError: the spec names no model, or its code raised.
        MissingExtraError: `torchvision:` without torchvision.
        DataError: the weights are unreadable, do not fit the model, or hold NaN or infinities.
    """
    model = _from_torchvision(spec) if spec.startswith(_TORCHVISION) else _from_user(resolve(spec))
    lazy = next((name for name, parameter in model.named_parameters() if is_lazy(parameter)), None)
    if lazy:
        raise UsageError(f"{spec}: {lazy} has no shape yet; run the model on an example before returning it")
    if weights is not None:
        for remark in load_weights(model, read_checkpoint(weights), weights):
            tell(remark)
    _check_finite(model, str(weights or spec))
    model.eval()  # what it returns is the user's code's affair
    return model


def check_input(model: nn.Module, batch: Any) -> Any:
    """Run `model` on a batch and return its outputs.

    Raises:
        DataError: the model does not take such images; the message says what its first layer expects.
    """
    try:
        return call_with(model, batch, device_of(model))
    except PimcalError as error:  # the model is the user's: anything can come out of it
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0] + location(cause)
        raise DataError(
            f"the model does not take {_described(model, batch)}{_first_layer(model)}; "
            f"resize or convert the images with --preprocess, or say how it is called with --calling ({reason})"
        ) from error


def _check_finite(model: nn.Module, source: str) -> None:
    """Raise `DataError` naming the first parameter or running statistic of `model` with a NaN or an infinity.

    Other buffers are left alone: attention masks hold infinities on purpose.
    """
    statistics = [(name, b) for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    for name, tensor in [*model.named_parameters(), *statistics]:
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise DataError(f"{source}: {name} has {bad} NaN or infinite values of {tensor.numel()}")


def _from_torchvision(spec: str) -> nn.Module:
    name = spec.removeprefix(_TORCHVISION)
    models = _torchvision_models()
    known = models.list_models()
    if name not in known:
        raise UsageError(f"torchvision has no model {name!r}{did_you_mean(name, known)}")
    # Segmentation and detection models fetch a trained backbone unless told not to.
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    backbone = {"weights_backbone": None} if "weights_backbone" in accepted else {}
    # These two warn unless told whether to spend half a minute on their own initialisation.
    initial = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, **backbone, **initial)
    return model


def _torchvision_models() -> Any:
    try:
        from torchvision import models
    except ModuleNotFoundError as error:
        raise MissingExtraError("a model from torchvision", "torchvision", "vision") from error
    except (ImportError, RuntimeError) as error:  # its compiled operators belong to one version of torch
        raise ConfigError(
            f"torchvision does not fit the installed torch ({error}); install both from one place: "
            "pip install --force-reinstall torch torchvision"
        ) from error
    return models


def _from_user(source: UserObject) -> nn.Module:
    if isinstance(source.value, nn.Module):
        return copy.deepcopy(source.value)  # weights loaded here must not reach the next user of the object
    if not callable(source.value):
        raise UsageError(f"{source.spec} is a {type(source.value).__name__}, not a model or a way to make one")
    model = source.make()
    if not isinstance(model, nn.Module):
        raise UsageError(f"{source.spec} returned a {type(model).__name__}; a torch.nn.Module is needed")
    return model


def _described(model: nn.Module, batch: Any) -> str:
    args, named = arguments(model, batch)
    if named:
        return f"the keyword arguments {', '.join(named)}"
    if len(args) > 1:
        return f"{len(args)} arguments"
    (inputs,) = args
    if isinstance(inputs, list):
        shape = f", the first of shape {list(inputs[0].shape)}" if isinstance(inputs[0], Tensor) else ""
        return f"a list of {len(inputs)} images{shape}"
    if isinstance(inputs, Mapping):
        return f"a dict of {', '.join(map(str, inputs))}"
    return f"images of shape {list(inputs.shape[1:])}" if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"


def _first_layer(model: nn.Module) -> str:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return f": its first layer, {name}, takes {layer.in_channels} channels"
        if isinstance(layer, nn.Linear):
            return f": its first layer, {name}, takes {layer.in_features} features"
    return ""
