"""`pimcal evaluate`: a network's quality on a device."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pimcal.cli import options as o
from pimcal.cli import stores as s
from pimcal.cli.output import mvm_bar, note, print_json, say, shown, stdout_for_json
from pimcal.errors import UsageError

if TYPE_CHECKING:
    from pimcal.deployment import Deployment
    from pimcal.store import Generation, Store


def evaluate(
    profile: o.ProfileOption,
    model: o.ModelOption,
    data: o.Data,
    weights: o.Weights = None,
    record: Annotated[Path | None, typer.Option("--record", help="Calibration record to apply first.")] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="Apply first what is active in this store, for device and model."),
    ] = None,
    force: o.Force = False,
    preprocess: o.Preprocess = "none",
    classes: o.Classes = None,
    calling: o.CallingOption = None,
    metric: o.MetricOption = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, max=o.MOST, help="Images to use; left out: all.")
    ] = None,
    batch_size: o.BatchSize = 64,
    seed: o.Seed = None,
    torch_device: o.TorchDevice = "cpu",
    override: o.Overrides = None,
    as_json: o.Json = False,
) -> None:
    """Run a network on a device and print how good it is there."""
    from pimcal.calibration.estimate import estimate
    from pimcal.deployment import deploy
    from pimcal.device import open_device
    from pimcal.evaluation import evaluate as run
    from pimcal.record import Record

    if record is not None and store is not None:
        raise UsageError("--record and --store both name a record to apply; give one of them")
    with stdout_for_json(as_json):
        subject = o.load_subject(profile, override, model, weights, seed, torch_device)
        batches = o.Reading(preprocess, batch_size, classes, calling).load(data, images)
        o.check_input(subject.model, batches.first)
        chosen = o.choose_metric(metric, batches.has_labels)
        corrections = None if record is None else Record.load(record)
        kept = s.open_reader(store)
        generation = None
        with open_device(subject.profile) as device:
            net = deploy(subject.model, device, batches.first)
            for remark in net.placement.notes:
                note(remark)
            if corrections is not None:
                net.apply(corrections, force=force)
            if kept is not None:
                generation = _apply_active(kept, net, force)
            total = None if batches.images is None else estimate(net, batches.first, batches.images).mvms
            with mvm_bar("evaluating", total, lambda: device.cost.mvms):
                result = run(net, batches, chosen)
            summary = net.placement.summary
    if result.not_finite:
        note(
            f"for {result.not_finite} of {result.images} images the network gave NaN or infinity on this device; "
            "look at its noise and at its converters' ranges"
        )
    if as_json:
        applied = {"record": record and str(record), "generation": generation and generation.id}
        print_json({**asdict(result), "profile": subject.profile.name, **applied})
        return
    value = shown(result.metric, result.value)
    say(f"{result.metric} {value} on {subject.profile.name} ({result.images} images)")
    say(f"{result.mvms:,} MVMs in {result.seconds:.1f} s; {summary}")


def _apply_active(store: Store, net: Deployment, force: bool) -> Generation | None:
    """Apply what is active for the network's device and model, and say which; None where nothing is."""
    from pimcal.store import key_of

    generation = store.active(key_of(net))
    if generation is None:
        note(f"no generation is active for {key_of(net)} in store {store.folder}; evaluating without corrections")
        return None
    net.apply(store.record(generation.id), force=force)
    note(f"generation {generation.id} of store {store.folder} is applied: {generation.reason}")
    return generation
