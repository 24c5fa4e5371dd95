"""The hooks of pimcal, one sentence each. A plugin implements any of them with `@hookimpl`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from pydantic import BaseModel
    from typer import Typer

    from pimcal.backend import Backend
    from pimcal.events import Event
    from pimcal.recalibration.triggers import Trigger, TriggerFunction

hookspec = pluggy.HookspecMarker("pimcal")
hookimpl = pluggy.HookimplMarker("pimcal")

Metric = Callable[..., float]


class RegisterBackend(Protocol):
    """`register(name=..., backend=..., settings=...)`; a "module:Class" is imported when it is opened."""

    def __call__(self, *, name: str, backend: type[Backend] | str, settings: type[BaseModel]) -> None: ...


class RegisterMetric(Protocol):
    """`register(name, function)`."""

    def __call__(self, name: str, function: Metric) -> None: ...


class RegisterTrigger(Protocol):
    """`register(name, function)`; the function, or a `Trigger` around it, gives whether it fired and a sentence why."""

    def __call__(self, name: str, function: Trigger | TriggerFunction) -> None: ...


@hookspec
def pimcal_register_backends(register: RegisterBackend) -> None:
    """Register backends by the names that a profile's `backend:` uses."""


@hookspec
def pimcal_on_event(event: Event) -> None:
    """Take note of something that happened (see `pimcal.events`)."""


@hookspec
def pimcal_register_commands(app: Typer) -> None:
    """Add commands to the command line."""


@hookspec
def pimcal_register_metrics(register: RegisterMetric) -> None:
    """Register metrics by the names that `--metric` takes."""


@hookspec
def pimcal_register_triggers(register: RegisterTrigger) -> None:
    """Register drift triggers by the names that a profile's `recalibration.when` uses."""
