"""Several methods at several times after programming: how accuracy drifts, and what brings it back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from torch import nn

from pimcal.calibration.methods import check_method
from pimcal.calibration.run import calibrate
from pimcal.deployment import Deployment, deploy
from pimcal.device import Device, open_device
from pimcal.errors import ConfigError, UsageError
from pimcal.evaluation import evaluate, repeatable
from pimcal.metrics import Metric
from pimcal.profile import Profile
from pimcal.profile.duration import parse_sensible
from pimcal.recipes import Recipe, with_references, with_seed

Calibration = Callable[[Recipe], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Reading:
    """One row of a timeline: the metric's value `time_s` seconds after programming.

    `images` and `mvms`: the images and matrix-vector products that the method took at that moment, to calibrate and to
    measure drift. `device_share`: the part of all multiplications by weights that the device made. `notes`: what there
    is to say about the device, not about this row.
    """

    time_s: float
    method: str
    seed: int
    value: float
    images: int
    mvms: int
    device_share: float | None = None
    notes: tuple[str, ...] = ()

    def as_row(self) -> dict[str, Any]:
        row = asdict(self)
        del row["notes"]
        return row


def parse_times(text: str) -> list[timedelta]:
    """`1s,1h,30d` as durations. Raises UsageError for what is none, or where time would run backwards."""
    try:
        times = [parse_sensible(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--at {text!r}: {error}, with commas between several: 1s,1h,30d") from error
    check_times([time.total_seconds() for time in times])
    return times


def check_times(times_s: Sequence[float]) -> None:
    """Raise UsageError unless there are times (s), none below zero, each later than the one before."""
    if not times_s or not all(math.isfinite(time_s) and time_s >= 0 for time_s in times_s):
        raise UsageError(f"a timeline needs times of 0 s or more, in seconds since programming; got {list(times_s)}")
    for earlier, later in itertools.pairwise(times_s):
        if later <= earlier:
            raise UsageError(
                f"time cannot run backwards or stand still: {later:g} s comes after {earlier:g} s; "
                "give times that increase"
            )


def check_clock(profile: Profile) -> None:
    """Raise ConfigError where no time can pass on the device of `profile`, which is opened to ask it."""
    with open_device(profile) as device:
        if not device.capabilities.simulated_clock:
            raise ConfigError(
                f"backend '{profile.backend}' of profile {profile.name} has no simulated clock, so no time can pass "
                "on it; name the profile of a simulator that has one, such as gaussian_mul"
            )


def timeline(
    model: nn.Module,
    profile: Profile,
    times_s: Sequence[float],
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    data: Iterable[Any],
    calibration: Calibration,
    metric: Metric,
    on_reading: Callable[[Reading], None] = lambda reading: None,
) -> list[Reading]:
    """Evaluate `model` at times (s) since it was programmed, by every recipe at each; by time, seed and recipe.

    For each seed (put in `device.seed`) one device is programmed at time 0 and ages; recipes with reference columns
    have another one. At each time a recipe may compensate drift and calibrate, on the batches that `calibration` gives
    for it; all that is undone before the next one. Where the backend can save its state, every evaluation starts from
    the noise of a device that only aged, so that a value does not depend on the other recipes and times.

    Where the profile itself asks for drift compensation, every recipe has it, `none` too.

    `on_reading` is told each row as soon as it is measured. Raises, before anything is programmed, UsageError for times
    that do not increase and ConfigError for a device without a simulated clock; ConfigError for a network that takes
    turns on the device, where every pass programs it anew.
    """
    check_times(times_s)
    check_clock(profile)
    data, readings = repeatable(data), []
    for seed, wanted in itertools.product(seeds, (False, True)):
        group = [recipe for recipe in recipes if recipe.references == wanted]
        if group:
            changed = with_references(with_seed(profile, seed), wanted)
            for reading in _age(model, changed, times_s, group, seed, data, calibration, metric):
                readings.append(reading)
                on_reading(reading)
    place = {recipe.name: i for i, recipe in enumerate(recipes)}
    return sorted(readings, key=lambda reading: (reading.time_s, seeds.index(reading.seed), place[reading.method]))


def _age(
    model: nn.Module,
    profile: Profile,
    times_s: Sequence[float],
    recipes: Sequence[Recipe],
    seed: int,
    data: Iterable[Any],
    calibration: Calibration,
    metric: Metric,
) -> Iterator[Reading]:
    """The life of one device."""
    with open_device(profile) as device:
        net = deploy(model, device, next(iter(data)))
        _check_stays(net)
        for recipe in recipes:
            if recipe.method is not None:
                check_method(net, recipe.method)
        if any(recipe.gdc for recipe in recipes):
            device.watch_drift()
        notes = (*net.placement.notes, *_own_compensation(device))
        for earlier, time_s in itertools.pairwise((0.0, *times_s)):
            if time_s > earlier:
                device.advance(time_s - earlier)
            moment = device.state_dict()
            for recipe in recipes:
                with _corrected(net, recipe, calibration) as (images, mvms):
                    found = evaluate(net, data, metric)
                if moment:
                    device.load_state_dict(moment)
                yield Reading(time_s, recipe.name, seed, found.value, images, mvms, found.device_share, notes)


@contextmanager
def _corrected(net: Deployment, recipe: Recipe, calibration: Calibration) -> Iterator[tuple[int, int]]:
    """The network as a recipe wants it, for the length of a block; gives the images and products that this took."""
    device, images = net.device, 0
    before = device.cost.copy()
    if recipe.gdc:
        device.compensate_drift()
    if recipe.method is not None:
        record = calibrate(net, calibration(recipe), recipe.method)
        net.apply(record)
        images = record.made_with.images
    yield images, device.cost.since(before).mvms
    if recipe.method is not None:
        net.revert()
    if recipe.gdc and not device.capabilities.drift_compensation:
        device.clear_drift_compensation()


def _check_stays(net: Deployment) -> None:
    if net.array.loads > 1:
        raise ConfigError(
            f"the network takes {net.array.loads} turns on the device, so that every pass programs it anew and nothing "
            "ages; give the device more tiles (tiles.count), larger ones, or keep layers on the host (host)"
        )


def _own_compensation(device: Device) -> tuple[str, ...]:
    if not device.capabilities.drift_compensation:
        return ()
    return (f"profile {device.profile.name} compensates drift by itself, and so do all methods here, 'none' included",)
