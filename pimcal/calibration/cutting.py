"""Calibration images in batches of the method's size, however the caller cut them.

Each batch sees one draw of the temporal noise, and `ema` takes its spread by itself: how many images are in one is the
method's affair. Whether an image may get other neighbours is asked of the digital model: it has to give the same
outputs for a few images together and in two parts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pimcal.batches import batch_size
from pimcal.calibration.form import Form, Part
from pimcal.calling import call_with, device_of
from pimcal.corrections import reference_state
from pimcal.deployment import Deployment
from pimcal.errors import UsageError

logger = logging.getLogger(__name__)

_FEW = 2  # images on either side of the seam that is tried
_CLOSE = 1e-3  # of the largest output: kernels round differently for another number of images


def recut(net: Deployment, batches: Sequence[Any], size: int) -> list[Any]:
    """The same images in batches of `size`, and one smaller one for each kind of them (shapes, types).

    Where the digital model shows that this would change what an image means, all stay as they are, and it is said.
    """
    sizes = [batch_size(batch) for batch in batches]
    if _are_right(sizes, size):
        return list(batches)
    form = Form(batches, sizes)
    groups = _groups(form)
    if all(_are_right([batch.images for batch in group], size) for group in groups):
        return [batch.content for group in groups for batch in group]
    why = next((why for group in groups if (why := _objection(net, form, group)) is not None), None)
    if why is None:
        return [batch.content for group in groups for batch in _resized(form, group, size)]
    logger.warning(
        "calibration takes its %d batches of up to %d images as they are, and not %d images in each: %s",
        len(sizes), max(sizes), size, why,
    )  # fmt: skip
    return list(batches)


def _are_right(sizes: Sequence[int], size: int) -> bool:
    return all(found == size for found in sizes[:-1]) and all(found <= size for found in sizes[-1:])


def _groups(form: Form) -> list[list[Part]]:
    """The batches by their kind."""
    kinds: list[tuple[Any, list[Part]]] = []
    for batch in form.batches:
        kind = form.kind(batch)
        group = next((group for known, group in kinds if known == kind), None)
        if group is None:
            kinds.append((kind, [batch]))
        else:
            group.append(batch)
    return [group for _, group in kinds]


def _resized(form: Form, group: Sequence[Part], size: int) -> Iterator[Part]:
    parts: list[Part] = []
    for batch in group:
        first = 0
        while first < batch.images:
            last = min(first + size - sum(part.images for part in parts), batch.images)
            parts.append(form.part(batch, first, last))
            first = last
            if sum(part.images for part in parts) == size:
                yield form.joined(parts)
                parts = []
    if parts:
        yield form.joined(parts)


# whether it may be done


def _objection(net: Deployment, form: Form, group: Sequence[Part]) -> str | None:
    """Why the images of a group must keep their neighbours; None where they need not."""
    first, last = group[0], group[-1]
    few = min(_FEW, first.images if len(group) > 1 else first.images // 2)
    if not few:
        return None  # a single image has no seam
    parts = [form.part(first, 0, few), form.part(last, max(0, last.images - _FEW), last.images)]
    try:
        together, *apart = [_outputs(net, part.content) for part in (form.joined(parts), *parts)]
    except UsageError as error:
        return f"the digital model fails on {few} images at a time ({error})"
    sides = (slice(0, few), slice(few, few + parts[1].images))
    found = [_agrees(together, part, few + parts[1].images, side) for part, side in zip(apart, sides, strict=True)]
    if False in found:
        return "what the digital model gives for an image depends on the other images of its batch, or on chance"
    return None if True in found else "the digital model gives no output for each image by which it could be told"


def _outputs(net: Deployment, batch: Any) -> Any:
    with reference_state(net).apart():
        return call_with(net.reference, batch, device_of(net))


def _agrees(whole: Any, part: Any, images: int, where: slice) -> bool | None:
    """Whether the images `where` have the same outputs in both; None where there is nothing for each image."""
    if isinstance(whole, Tensor):
        each, rest = divmod(whole.shape[0], images) if whole.dim() else (0, 1)
        return None if rest or not each else _close(whole[where.start * each : where.stop * each], part)
    if isinstance(whole, list) and len(whole) == images:
        return _same(whole[where], part)
    found = [_agrees(a, b, images, where) for a, b in _pairs(whole, part)]
    return None if all(each is None for each in found) else False not in found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return _close(a, b)
    return all(_same(ours, theirs) for ours, theirs in _pairs(a, b))


def _pairs(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        yield from ((a[key], b.get(key)) for key in a)
    elif isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
        yield from zip(a, b, strict=True)


def _close(a: Tensor, b: Any) -> bool:
    if not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    share = max(_CLOSE, 8 * torch.finfo(a.dtype).eps)
    atol = share * float(a.float().nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.numel() else 0.0
    return torch.allclose(a.float(), b.float(), rtol=0.0, atol=atol, equal_nan=True)
