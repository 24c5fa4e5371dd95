"""`pimcal calibrate`: measure, correct, let the gate decide, write the record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimcal.cli import options as o
from pimcal.cli.output import mvm_bar, note, print_json, print_table, say, shown, stdout_for_json
from pimcal.errors import DataError, StorageError, UsageError
from pimcal.files import check_replaceable, check_writable

if TYPE_CHECKING:
    from pimcal.calibration.divergence import Divergence
    from pimcal.calibration.gate import Verdict
    from pimcal.deployment import Deployment
    from pimcal.device import Cost
    from pimcal.metrics import Metric
    from pimcal.placement_report import Placement
    from pimcal.record import Record
    from pimcal.sources.batches import Batches
    from pimcal.store import Generation, Store

SYNTHETIC_HELD_OUT = 256
DEFAULT_OUT = Path("calibration.safetensors")
FEW_HELD_OUT = 50  # with fewer, one image more or less decides


@dataclass(frozen=True, slots=True)
class Images:
    """What a calibration uses: images to calibrate on, and others for the gate."""

    calibration: Batches
    held_out: Batches


def calibrate(
    profile: o.ProfileOption,
    model: o.ModelOption,
    data: o.OptionalData = None,
    calibration_data: o.CalibrationData = None,
    held_out: o.HeldOut = None,
    weights: o.Weights = None,
    method: Annotated[
        str | None, typer.Option("--method", help="paired, affine, pooled or ema; left out: as the profile says.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, max=o.MOST, help="Calibration images; left out: as the profile says."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help=f"Where the record goes; left out: {DEFAULT_OUT}, and with --store no file."
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", metavar="DIR", help="Keep the record in this store; the gate compares with what is active there."
        ),
    ] = None,
    active: Annotated[
        Path | None,
        typer.Option("--active", metavar="FILE", help="The record in force now, which the gate compares with."),
    ] = None,
    force: o.Force = False,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop", min=0, max=o.MOST, callback=o.finite, help="Drop of the metric that the gate allows."
        ),
    ] = None,
    divergence: Annotated[
        bool, typer.Option("--divergence", help="Also show each layer's KL and JS divergence, before and after.")
    ] = False,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", metavar="C,H,W", help="Shape of synthetic images without --data.")
    ] = None,
    preprocess: o.Preprocess = "none",
    classes: o.Classes = None,
    calling: o.CallingOption = None,
    metric: o.MetricOption = None,
    batch_size: o.BatchSize = 64,
    seed: o.Seed = None,
    torch_device: o.TorchDevice = "cpu",
    override: o.Overrides = None,
    as_json: o.Json = False,
) -> None:
    """Calibrate a network on a device, and keep the result if it is not worse on held-out images.

    --data are the held-out images. Without --calibration-data the first --images of them calibrate, the rest is held
    out. With `--calibration-data synthetic` no real image is needed for the calibration.
    """
    if active is not None and store is not None:
        raise UsageError("--active and --store both name the record in force now; give one of them")
    file = DEFAULT_OUT if out is None and store is None else out
    if file is not None:
        _check_out(file)
    if store is not None:
        check_writable(store)
    o.check_method(method)

    from pimcal.deployment import deploy
    from pimcal.device import open_device
    from pimcal.record import Record

    with stdout_for_json(as_json):
        in_force = None if active is None else Record.load(active)
        subject = o.load_subject(profile, override, model, weights, seed, torch_device)
        count = images or subject.profile.calibration.images
        reading = o.Reading(preprocess, batch_size, classes, calling)
        found = _images(data, calibration_data, count, o.parse_shape(input_shape), reading, seed or 0, held_out)
        o.check_input(subject.model, found.held_out.first)
        o.check_calibration_images(subject.model, found.calibration)
        chosen = o.choose_metric(metric, found.held_out.has_labels)
        with open_device(subject.profile) as device, _opened(store) as kept:
            net = deploy(subject.model, device, found.held_out.first)
            for remark in net.placement.notes:
                note(remark)
            if kept is not None:
                in_force = _active(kept, net, force)
            if in_force is not None:
                net.apply(in_force, force=force)
            placement = net.placement
            verdict, divergences = _run(net, found, method, chosen, max_drop, seed, divergence)
            generation = None if kept is None else _keep(kept, verdict, device.cost)
    path = verdict.record.save(file) if verdict.activated and file is not None else None
    if as_json:
        print_json(_as_json(verdict, divergences, path, generation) | {"device_share": placement.device_share})
    else:
        _print(verdict, divergences, path, generation, placement)


def _check_out(file: Path) -> None:
    if file.is_dir():
        raise UsageError(f"--out {file} is a folder; name a file in it")
    check_replaceable(file)
    check_writable(file.parent)


@contextmanager
def _opened(folder: Path | None) -> Iterator[Store | None]:
    """The store, made where there is none."""
    if folder is None:
        yield None
        return
    from pimcal.store import Store

    with Store.create(folder) as store:
        yield store


def _active(store: Store, net: Deployment, force: bool) -> Record | None:
    """The store's active record, if it can be in force: a calibration is what mends a store where it cannot."""
    from pimcal.record import check_fits
    from pimcal.store import key_of

    try:
        record = store.active_record(key_of(net))
        if record is not None:
            check_fits(record, net.model_hash, net.device, force=force)
    except (DataError, StorageError) as error:
        note(f"the gate compares with no record in force: {error}")
        return None
    return record


def _keep(store: Store, verdict: Verdict, cost: Cost) -> Generation:
    """Put the record into the store: active, or rejected."""
    record, reason = verdict.record, verdict.reason
    generation = store.add_candidate(record, f"calibrated with {record.method}, {record.made_with.images} images")
    generation = (store.activate if verdict.activated else store.reject)(generation.id, reason)
    store.journal.add_run(
        generation.key, outcome=generation.state, reason=reason, cost=cost, images=record.made_with.images,
        generation=generation.id,
    )  # fmt: skip
    return generation


def _images(
    data: str | None,
    calibration_data: str | None,
    count: int,
    shape: tuple[int, ...] | None,
    reading: o.Reading,
    seed: int,
    judged: int | None,
) -> Images:
    apart = count if calibration_data is None else 0
    held_out = reading.load_held_out(data, judged, apart) if data else None
    if calibration_data == "synthetic":
        return _synthetic_images(held_out, shape, count, seed)
    if calibration_data is not None:
        calibration = reading.load_calibration(calibration_data, count).in_memory()
        if held_out is None:
            raise UsageError("the gate needs held-out images: give --data as well as --calibration-data")
        return Images(calibration, held_out)
    if held_out is None:
        raise UsageError("give --data (images to calibrate on and to judge by), or --calibration-data synthetic")
    calibration, rest = held_out.split(count)
    return Images(calibration.in_memory(), rest)


def _synthetic_images(held_out: Batches | None, shape: tuple[int, ...] | None, count: int, seed: int) -> Images:
    if held_out is not None:
        return Images(synthetic_like(held_out, count, seed), held_out)
    if shape is None:
        raise UsageError("synthetic images need a shape: give --data, or --input-shape C,H,W")
    return Images(_synthetic(count, shape, seed), _synthetic(SYNTHETIC_HELD_OUT, shape, seed + 1))


def synthetic_like(batches: Batches, count: int, seed: int) -> Batches:
    """Synthetic images of the shape of others. Raises UsageError where those are no images."""
    from pimcal.batches import split_batch, tensors_in

    args, kwargs, _ = split_batch(batches.first)
    shape = next((tuple(tensor.shape[1:]) for tensor in tensors_in((args, kwargs))), ())
    return _synthetic(count, shape, seed)


def _synthetic(count: int, shape: tuple[int, ...], seed: int) -> Batches:
    import torch

    from pimcal.sources.batches import Batches
    from pimcal.synthetic import synthetic_images

    images = synthetic_images(count, shape, torch.Generator().manual_seed(seed))
    return Batches.of(images.split(64))


def _run(
    net: Deployment,
    images: Images,
    method: str | None,
    metric: Metric,
    max_drop: float | None,
    seed: int | None,
    divergence: bool,
) -> tuple[Verdict, dict[str, tuple[Divergence, Divergence]]]:
    from pimcal.calibration import calibrate as run
    from pimcal.calibration.divergence import divergences
    from pimcal.calibration.estimate import estimate
    from pimcal.calibration.gate import gate

    settings = net.device.profile
    chosen: Any = method or settings.calibration.method
    batches = list(images.calibration)
    cost = estimate(net, batches[0], images.calibration.count(), chosen)
    seconds = "" if cost.seconds is None else f", about {cost.seconds:.1f} s"
    note(f"calibrating with {cost.images} images: {cost.mvms:,} MVMs{seconds}")
    with mvm_bar(chosen, cost.mvms, lambda: net.device.cost.mvms):
        record = run(net, batches, chosen, seed=seed)
    sample = [*islice(images.calibration.resized(16), 4)] if divergence else []
    before = divergences(net, sample) if sample else {}
    held_out = images.held_out
    if settings.gate.images is not None and (held_out.images is None or settings.gate.images < held_out.images):
        held_out = held_out.up_to(settings.gate.images)
    total = None
    if held_out.images is not None:
        _note_few(held_out.images)
        total = 2 * settings.gate.repeats * held_out.images * cost.mvms // cost.images  # before and after
    with mvm_bar("gate", total, lambda: net.device.cost.mvms):
        verdict = gate(net, record, held_out, metric, max_drop=max_drop)
    if held_out.images is None:
        _note_few(verdict.images)
    if not sample:
        return verdict, {}
    if not verdict.activated:
        net.apply(record)
    after = divergences(net, sample)
    return verdict, {name: (before[name], after[name]) for name in before}


def _note_few(held_out: int) -> None:
    if held_out < FEW_HELD_OUT:
        share = 100 / held_out
        note(f"the gate's judgement is coarse: of {held_out} held-out images each counts {share:.1f} %")


def _as_json(
    verdict: Verdict,
    found: dict[str, tuple[Divergence, Divergence]],
    path: Path | None,
    generation: Generation | None,
) -> dict[str, Any]:
    made = verdict.record.made_with
    result = {
        "method": verdict.record.method,
        "images": made.images,
        "mvms": made.mvms,
        "seconds": made.seconds,
        "metric": made.metric,
        "before": verdict.before,
        "after": verdict.after,
        "activated": verdict.activated,
        "reason": verdict.reason,
        "gate": {"images": verdict.images, "mvms": verdict.mvms},
        "id": verdict.record.id,
        "record": None if path is None else str(path),
        "generation": None if generation is None else generation.id,
    }
    if found:
        result["divergence"] = {
            name: {"before": asdict(before), "after": asdict(after)} for name, (before, after) in found.items()
        }
    return result


def _print(
    verdict: Verdict,
    found: dict[str, tuple[Divergence, Divergence]],
    path: Path | None,
    generation: Generation | None,
    placement: Placement,
) -> None:
    made, metric = verdict.record.made_with, str(verdict.record.made_with.metric)
    cost = f"{made.images} images, {made.mvms:,} MVMs, {made.seconds:.1f} s"
    say(f"{verdict.record.method}: {cost}; {placement.summary}")
    typer.echo(f"{metric} before {shown(metric, verdict.before)}, after {shown(metric, verdict.after)}")
    if generation is not None:
        typer.echo(f"generation {generation.id} is {generation.state} in the store")
    if path is not None:
        say(f"record {verdict.record.id} written to {path}")
    if not verdict.activated:
        written = "nothing was written" if generation is None else "what was in force still is"
        say(f"not activated: {verdict.reason}; {written} (--max-drop allows more)")
    if found:
        rows = [(name, f"{b.kl:.4f}", f"{a.kl:.4f}", f"{b.js:.4f}", f"{a.js:.4f}") for name, (b, a) in found.items()]
        print_table(("behind layer", "KL before", "KL after", "JS before", "JS after"), rows)
