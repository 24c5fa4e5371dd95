"""`pimcal daemon`: keeps one device calibrated; and what a running one can be asked."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimcal import __version__
from pimcal.cli import options as o
from pimcal.cli import stores as s
from pimcal.cli.durations import seconds
from pimcal.cli.output import Lines, print_json, print_table
from pimcal.errors import ConfigError, DataError, DeviceUnavailableError, StorageError, UsageError
from pimcal.files import check_writable
from pimcal.shown import one_line

if TYPE_CHECKING:
    from pimcal.daemon.subject import Images, Subject
    from pimcal.profile import Profile
    from pimcal.serving.binding import Binding
    from pimcal.sources.batches import Batches

logger = logging.getLogger(__name__)

PATIENCE_S, TICK_S = 60.0, 0.1  # for a daemon to do what it was asked


FIRST = ("state", "ready", "problems")  # what `status` begins with
SHOWN_DIGITS = 12  # of a hash


class LogFormat(StrEnum):
    """How the log is written."""

    lines = "lines"
    json = "json"


SocketOption = Annotated[
    Path | None, typer.Option("--socket", metavar="PATH", help="The daemon's socket; left out: daemon.sock in --store.")
]

app = typer.Typer(
    help="Keep a device calibrated by the profile's schedule, for as long as it runs.", invoke_without_command=True
)


@app.callback()
def run(
    context: typer.Context,
    profile: Annotated[
        str | None,
        typer.Option("--profile", metavar="NAME|FILE", help="Hardware profile: a shipped name or a YAML file."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="SPEC", help="file.py:name, pkg.mod:name or torchvision:NAME.")
    ] = None,
    data: o.OptionalData = None,
    calibration_data: o.CalibrationData = None,
    held_out: o.HeldOut = None,
    store: s.OptionalStore = None,
    weights: o.Weights = None,
    preprocess: o.Preprocess = "none",
    classes: o.Classes = None,
    calling: o.CallingOption = None,
    metric: o.MetricOption = None,
    batch_size: o.BatchSize = 64,
    seed: o.Seed = None,
    torch_device: o.TorchDevice = "cpu",
    override: o.Overrides = None,
    new: Annotated[
        bool, typer.Option("--new", help="Begin anew where the store has calibrations for another model or profile.")
    ] = False,
    socket: SocketOption = None,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="One line a message, or one JSON object.")] = (
        LogFormat.lines
    ),
    speed: Annotated[
        float,
        typer.Option(
            "--speed", min=1, max=1e6, callback=o.finite, help="Simulated devices: time passes so many times faster."
        ),
    ] = 1.0,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="[HOST:]PORT", help="Let others use the device over HTTP; HOST: 127.0.0.1."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="With --http: a file that holds the token.")
    ] = None,
) -> None:
    """Keep a device calibrated by the profile's schedule, for as long as it runs.

    --data are the held-out images that every calibration is judged by. Without --calibration-data the first ones, as
    many as the profile says, calibrate instead. Stop it with SIGTERM or `pimcal daemon stop`; SIGHUP
    reloads the profile.
    """
    if context.invoked_subcommand is not None:
        return
    given = {"--profile": profile, "--model": model, "--data": data, "--store": store}
    missing = [name for name, value in given.items() if value is None]
    if profile is None or model is None or data is None or store is None:
        raise UsageError(f"the daemon needs {', '.join(missing)}; see `pimcal daemon --help`")

    binding = _binding(http, token_file)

    def read() -> Profile:
        return o.read_profile(profile, override, seed)

    from pimcal.daemon.logs import log_to

    with _configuration():
        read()  # before torch is loaded, so that a mistake is told at once
        check_writable(store)
        log_to(_stderr(), log_format.value)
        logger.info(
            "pimcal %s: profile %s, model %s, store %s, process %d", __version__, profile, model, store, os.getpid()
        )
        loaded = o.load_subject(profile, override, model, weights, seed, torch_device)
        images = _images(data, calibration_data, held_out, o.Reading(preprocess, batch_size, classes, calling))
        subject = _subject(loaded, images, metric)
        make_store(store)  # now that all else is right: nothing is left behind where it is not
    raise typer.Exit(_serve(subject, read, store, socket, new, speed, binding))


def make_store(folder: Path) -> None:
    """Raises StorageError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the store {folder}: {error.strerror}; name another folder") from error


@contextmanager
def _configuration() -> Iterator[None]:
    """What is wrong with the model or the data is so at the next start, too: a service manager is not to try again."""
    try:
        yield
    except (UsageError, DataError) as error:
        raise ConfigError(str(error)) from error


def _binding(http: str | None, token_file: Path | None) -> Binding | None:
    if http is None:
        if token_file is not None:
            raise UsageError("--token-file is for --http [HOST:]PORT, which is not given")
        return None
    from pimcal.serving.binding import read_binding
    from pimcal.serving.extra import check_extra

    check_extra()
    return read_binding(http, token_file)


def _images(
    data: str, calibration_data: str | None, held_out: int | None, reading: o.Reading
) -> Callable[[Profile], tuple[Batches, Batches]]:
    """What gives the images to calibrate on and to judge by; all are read once, and kept."""
    from functools import cache

    @cache
    def load(count: int) -> tuple[Batches, Batches]:
        apart = count if calibration_data is None else 0
        judged = reading.load_held_out(data, held_out, apart).in_memory()
        if calibration_data is None:
            return judged.split(count)
        if calibration_data == "synthetic":
            from pimcal.cli.calibrate import synthetic_like

            return synthetic_like(judged, count, 0), judged
        return reading.load_calibration(calibration_data, count).in_memory(), judged

    return lambda profile: load(profile.calibration.images)


def _subject(loaded: o.Subject, load: Callable[[Profile], tuple[Batches, Batches]], metric: str | None) -> Subject:
    from pimcal.daemon.subject import Subject, images_for

    calibration, judged = load(loaded.profile)
    o.check_input(loaded.model, judged.first)
    o.check_calibration_images(loaded.model, calibration)

    def images(profile: Profile) -> Images:
        return images_for(profile, *load(profile))

    return Subject(loaded.profile, loaded.model, o.choose_metric(metric, judged.has_labels), images)


def _serve(
    subject: Subject,
    read: Callable[[], Profile],
    store: Path,
    socket: Path | None,
    new: bool,
    speed: float,
    binding: Binding | None,
) -> int:
    from pimcal.daemon.address import socket_file
    from pimcal.daemon.clock import SystemClock
    from pimcal.daemon.notify import Notifier
    from pimcal.daemon.overview import Overview
    from pimcal.daemon.reload import reloaded
    from pimcal.daemon.service import Bell, Service
    from pimcal.daemon.worker import Job, Worker

    bell, clock, address = Bell(), SystemClock(speed), socket_file(store, socket)

    def now() -> float:
        return clock.now().wall_s

    overview = Overview(Worker(Job(subject, store, clock, new, bell.ring)), store, now)
    with bell.for_signals(), ExitStack() as stack:
        more = []
        if binding is not None:
            from pimcal.serving.beside import beside

            more = [stack.enter_context(beside(overview, subject, store, address, now, binding))]
        service = Service(
            overview, bell, address, Notifier(os.environ), lambda old: reloaded(old, read()), subject, *more
        )
        return service.run()


def _stderr() -> Any:
    import sys

    return sys.stderr


# --- what a running daemon can be asked


@app.command()
def status(store: s.OptionalStore = None, socket: SocketOption = None, as_json: o.Json = False) -> None:
    """Show what the daemon does, has found, and does next."""
    found = _ask(store, socket, {"do": "status"})
    if as_json:
        print_json(found)
        return
    told = {
        **dict.fromkeys(FIRST),
        **found,
        "decision": Lines("\n".join(one_line(str(line)) for line in found["decision"])),
    }
    for name in ("counters", "telemetry", "problems", "last_look"):
        told[name] = ", ".join(f"{key}: {_short(value)}" for key, value in (found[name] or {}).items())
    told["model_hash"] = (found.get("model_hash") or "")[:SHOWN_DIGITS]
    print_table(("field", "value"), [(key, "" if value is None else _short(value)) for key, value in told.items()])


def _short(value: object) -> object:
    """Numbers with six digits: more are noise; but all of a count."""
    return f"{value:.6g}" if isinstance(value, float) and not value.is_integer() else value


@app.command("run-now")
def run_now(
    store: s.OptionalStore = None,
    socket: SocketOption = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Calibrate, whatever a look would say.")] = False,
) -> None:
    """Look at the device now and undo what has drifted; ends a pause or a release."""
    _tell(store, socket, {"do": "run-now", "calibrate": calibrate})


@app.command()
def pause(store: s.OptionalStore = None, socket: SocketOption = None) -> None:
    """Decide nothing until `resume` or `run-now`; the device goes on serving."""
    _tell(store, socket, {"do": "pause"})


@app.command()
def resume(store: s.OptionalStore = None, socket: SocketOption = None) -> None:
    """End a pause or a release."""
    _tell(store, socket, {"do": "resume"})


@app.command()
def release(
    lasting: Annotated[str, typer.Option("--for", metavar="DURATION", help="When to take it back: 30m, 2h, ...")],
    store: s.OptionalStore = None,
    socket: SocketOption = None,
) -> None:
    """Close the device, so that something else can use it; returns when it is closed."""
    seconds("--for", lasting)  # before anybody is asked
    _tell(store, socket, {"do": "release", "for": lasting})
    _wait(lambda: _ask(store, socket, {"do": "status"})["state"] == "released", "released the device")


@app.command()
def stop(store: s.OptionalStore = None, socket: SocketOption = None) -> None:
    """End the daemon; returns when it has."""
    from pimcal.daemon.client import NoDaemonError

    def ended() -> bool:
        try:
            _ask(store, socket, {"do": "status"})
        except NoDaemonError:
            return True
        except DeviceUnavailableError:  # it is there, and too busy with its end to answer
            return False
        return False

    _tell(store, socket, {"do": "stop"})
    _wait(ended, "stopped")


def _ask(store: Path | None, socket: Path | None, request: dict[str, Any]) -> dict[str, Any]:
    from pimcal.daemon.address import socket_file
    from pimcal.daemon.client import ask

    if store is None and socket is None:
        raise UsageError("which daemon? give its --store, or its --socket")
    return ask(socket_file(store or Path(), socket), request)


def _tell(store: Path | None, socket: Path | None, request: dict[str, Any]) -> None:
    _ask(store, socket, request)
    typer.echo(f"told the daemon: {request['do']}")


def _wait(reached: Callable[[], bool], what: str) -> None:
    """Raises DeviceUnavailableError where the daemon has not done it in time."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not reached():
        if time.monotonic() > deadline_s:
            raise DeviceUnavailableError(f"the daemon has not {what} within {PATIENCE_S:g} s; look at its log")
        time.sleep(TICK_S)
