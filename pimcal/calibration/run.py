"""A calibration from batches to a record. The network is left exactly as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from pimcal.batches import batch_size
from pimcal.calibration.clean import CleanStatistics
from pimcal.calibration.cutting import recut
from pimcal.calibration.interlude import Interlude, Pause, no_pause
from pimcal.calibration.methods import Method, Progress, batch_size_for, check_method, find_corrections
from pimcal.calibration.provenance import provenance
from pimcal.calling import Calling, called
from pimcal.deployment import Deployment
from pimcal.errors import DataError
from pimcal.events import CalibrationFinished
from pimcal.record import Record
from pimcal.registry import emit


def calibrate(
    net: Deployment,
    batches: Iterable[Any],
    method: Method | None = None,
    *,
    momentum: float | None = None,
    seed: int | None = None,
    clean: CleanStatistics | None = None,
    calling: Calling | None = None,
    progress: Progress = lambda share: None,
    pause: Pause = no_pause,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    clock: Callable[[], float] = time.perf_counter,
) -> Record:
    """Measure what the device does to the activations, and find the corrections that undo it.

    `batches` hold the calibration images (no labels needed), as `pimcal.batches` says. They are cut anew, to the
    profile's `calibration.batch_size` or the method's own (64 for `ema`, else 16), where the model takes each image by
    itself. `method`:

    - `paired` (default, from the profile): BatchNorm statistics moved by the difference between the device and the
      digital model on the same images; measured layer by layer over all batches at once.
    - `affine`: the same, and a gain and an offset a channel for device layers that no BatchNorm follows.
    - `pooled`: BatchNorm statistics replaced by the exact moments over all images.
    - `ema`: Algorithm 1 of Tsai et al., batch after batch, with `momentum` (0.999, PyTorch's is 1 - momentum).

    Nothing is in force afterwards that was not before: `net.apply(record)` is the second step.

    `calling`: how the model is called with a batch, as `evaluate` has it.
    `clean`: what `clean_for` gave for this method and these batches, to save another run of the digital model.
    `seed` is only recorded. `progress` is called with the share of the work that is done, from 0 to 1. `pause` is
    called between measurements: there `net` may be called, with other corrections if these are undone again.
    `now` and `clock` give the record's date and its duration in seconds.

    Raises DataError for fewer than two images or for NaN on the way, UsageError where the method does not suit
    the model.
    """
    settings = net.device.profile.calibration
    method = method or settings.method
    batches = [called(batch, calling) for batch in batches]
    images = count_images(batches)
    net.settle(batches[0])
    check_method(net, method)
    batches = recut(net, batches, batch_size_for(net, method))
    before, start, interlude = net.device.cost.copy(), clock(), Interlude(net.device, pause)
    with net.uncorrected():
        corrections = find_corrections(
            net,
            batches,
            method,
            momentum=settings.momentum if momentum is None else momentum,
            clean=clean,
            progress=progress,
            interlude=interlude,
        )
    mvms = net.device.cost.since(before).mvms - interlude.mvms
    made_with = provenance(
        net, now(), mvms=mvms, images=images, batches=len(batches), seconds=clock() - start, seed=seed
    )
    record = Record(method=method, corrections=corrections, made_with=made_with)
    emit(CalibrationFinished(method, images, mvms, record.made_with.seconds))
    return record


def count_images(batches: Sequence[Any]) -> int:
    """The number of images in all batches. Raises DataError where they are too few to measure a spread."""
    images = sum(batch_size(batch) for batch in batches)
    if images < 2:
        raise DataError(f"calibration needs at least 2 images to measure a spread, got {images}; 64 is a good number")
    return images
