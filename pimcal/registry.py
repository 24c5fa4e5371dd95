"""Finds backends and plugins through entry points and loads them by name, when they are named.

Entry-point group `pimcal`: backends; the entry's name is the backend's. Group `pimcal.plugins`: the rest.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import pluggy

from pimcal import hookspecs
from pimcal.errors import ConfigError, MissingExtraError, PimcalError
from pimcal.suggest import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

    from pydantic import BaseModel
    from typer import Typer

    from pimcal.backend import Backend
    from pimcal.events import Event
    from pimcal.hookspecs import Metric
    from pimcal.recalibration.triggers import Trigger, TriggerFunction

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a plugin comes from: its distribution (None where a program registered it) and module."""

    distribution: Distribution | None
    module: str

    def __str__(self) -> str:
        if self.distribution is None:
            return f"module {self.module}, registered by the running program"
        return f"module {self.module} of {self.distribution.name} {self.distribution.version}"


@dataclass(frozen=True, slots=True)
class Registration:
    """One backend: its name, its class (or "module:Class"), its settings model, and who offers it."""

    name: str
    backend: type[Backend] | str
    settings: type[BaseModel]
    origin: Origin


class Registry:
    """The backends and plugins of one program."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("pimcal")
        self._manager.add_hookspecs(hookspecs)
        self._origins: dict[int, Origin] = {}  # by id(plugin); the manager keeps the plugins alive
        self._registrations: dict[str, Registration] = {}
        self._plugin_names: list[str] | None = None

    @cached_property
    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for entry in importlib.metadata.entry_points(group="pimcal"):
            found.setdefault(entry.name, []).append(entry)
        return found

    def backend_names(self) -> list[str]:
        """The names that a profile's `backend:` can use, sorted. Nothing is loaded for it."""
        return sorted({*self._entry_points, *self._registrations})

    def registration(self, name: str) -> Registration:
        """Load the plugin that offers backend `name`.

        Raises:
            ConfigError: nobody offers it, two do, or it cannot be imported.
            MissingExtraError: it needs a library that one of pimcal's extras installs.
        """
        entries = self._entry_points.get(name, [])
        if len(entries) > 1:
            raise _conflict(f"backend '{name}'", *map(_origin, entries))
        for entry in entries:
            self._load(entry)
        if name not in self._registrations:
            raise self._unknown(name, entries)
        return self._registrations[name]

    def settings_model(self, name: str) -> type[BaseModel]:
        """The pydantic model of a profile's `device:` part for backend `name`. Does not import its class."""
        return self.registration(name).settings

    def backend_class(self, name: str) -> type[Backend]:
        """The class of backend `name`, imported now."""
        from pimcal.backend import Backend

        found = self.registration(name)
        with _load_errors(f"backend '{name}'", found.origin):
            backend = _resolve(found.backend)
        if not (isinstance(backend, type) and issubclass(backend, Backend)):
            raise ConfigError(f"backend '{name}' ({found.origin}): {backend!r} is no subclass of pimcal.Backend")
        return backend

    def register_plugin(self, plugin: Any, name: str | None = None) -> None:
        """Register a module or object with hook implementations, without an entry point.

        Raises:
            ConfigError: another plugin has this name, or offers a backend of the same name.
        """
        module = getattr(plugin, "__name__", None) or type(plugin).__module__
        name = name or self._manager.get_canonical_name(plugin)
        self._adopt(plugin, f"plugin '{name}'", Origin(None, module))

    def plugins(self) -> list[str]:
        """Load the group `pimcal.plugins` once; the names of those that work. Of a broken one, warn."""
        if self._plugin_names is None:
            entries = list(importlib.metadata.entry_points(group="pimcal.plugins"))
            for first, second in _same_names(entries):
                raise _conflict(f"plugin '{first.name}'", _origin(first), _origin(second))
            self._plugin_names = [entry.name for entry in entries if self._load_or_warn(entry)]
        return list(self._plugin_names)

    def metrics(self) -> dict[str, Metric]:
        """The metrics that plugins add, by name.

        Raises:
            ConfigError: two plugins register one name.
        """
        self.plugins()
        found: dict[str, Metric] = {}
        origins: dict[str, Origin] = {}

        def register(name: str, function: Metric, *, origin: Origin) -> None:
            if name in found:
                raise _conflict(f"metric '{name}'", origins[name], origin)
            found[name], origins[name] = function, origin

        self._call_each("pimcal_register_metrics", lambda origin: {"register": partial(register, origin=origin)})
        return found

    def triggers(self) -> dict[str, Trigger]:
        """The drift triggers by name: those of pimcal, and those that plugins add.

        Raises:
            ConfigError: two plugins register one name, or one registers a name of pimcal's.
        """
        from pimcal.recalibration.triggers import BUILT_IN, Trigger

        self.plugins()
        found = dict(BUILT_IN)
        origins: dict[str, Origin] = {}

        def register(name: str, function: Trigger | TriggerFunction, *, origin: Origin) -> None:
            if name in origins:
                raise _conflict(f"trigger '{name}'", origins[name], origin)
            if name in BUILT_IN:
                raise ConfigError(f"trigger '{name}' ({origin}): pimcal has a trigger of this name; rename it")
            origins[name] = origin
            found[name] = function if isinstance(function, Trigger) else Trigger(function)

        self._call_each("pimcal_register_triggers", lambda origin: {"register": partial(register, origin=origin)})
        return found

    def register_commands(self, app: Typer) -> None:
        """Let the plugins add their commands to the command line."""
        self.plugins()
        self._call_each("pimcal_register_commands", lambda _: {"app": app})

    def notify(self, event: Event) -> None:
        """Hand `event` to every plugin that listens; one that fails does not stop the others."""
        if self._manager.hook.pimcal_on_event.get_hookimpls():
            self._call_each("pimcal_on_event", lambda _: {"event": event})

    def _load(self, entry: EntryPoint) -> None:
        origin = _origin(entry)
        kind = "backend" if entry.group == "pimcal" else "plugin"
        what = f"{kind} '{entry.name}'"
        with _load_errors(what, origin):
            plugin = entry.load()
        self._adopt(plugin, what, origin)

    def _load_or_warn(self, entry: EntryPoint) -> bool:
        try:
            self._load(entry)
        except ConfigError as error:
            logger.warning("plugin left out: %s", error)
            return False
        return True

    def _adopt(self, plugin: Any, name: str, origin: Origin) -> None:
        """Register `plugin` and the backends it offers, or change nothing and raise."""
        if self._manager.is_registered(plugin):
            return
        present = self._manager.get_plugin(name)
        if present is not None:
            raise _conflict(name, self._origins[id(present)], origin)
        with _load_errors(name, origin):
            self._manager.register(plugin, name)
        try:
            with _load_errors(name, origin):
                offered = self._backends_of(plugin, origin)
        except BaseException:
            self._manager.unregister(plugin)
            raise
        self._origins[id(plugin)] = origin
        self._registrations.update(offered)

    def _backends_of(self, plugin: Any, origin: Origin) -> dict[str, Registration]:
        offered: dict[str, Registration] = {}

        def register(*, name: str, backend: type[Backend] | str, settings: type[BaseModel]) -> None:
            from pydantic import BaseModel

            if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
                raise ConfigError(f"backend '{name}' ({origin}): settings must be a pydantic model, not {settings!r}")
            other = offered.get(name) or self._registrations.get(name)
            if other is not None:
                raise _conflict(f"backend '{name}'", other.origin, origin)
            offered[name] = Registration(name, backend, settings, origin)

        self._call("pimcal_register_backends", plugin, register=register)
        return offered

    def _call(self, hook: str, plugin: Any, **arguments: Any) -> None:
        others = [other for _, other in self._manager.list_name_plugin() if other is not plugin]
        self._manager.subset_hook_caller(hook, others)(**arguments)

    def _call_each(self, hook: str, arguments: Callable[[Origin], dict[str, Any]]) -> None:
        """Call `hook` of each plugin; of what one raises, warn, unless it is one of pimcal's errors."""
        for name, plugin in self._manager.list_name_plugin():
            origin = self._origins[id(plugin)]
            try:
                self._call(hook, plugin, **arguments(origin))
            except PimcalError:
                raise
            except Exception as error:
                logger.warning("%s (%s) failed in %s: %s: %s", name, origin, hook, type(error).__name__, error)

    def _unknown(self, name: str, entries: list[EntryPoint]) -> ConfigError:
        if entries:
            return ConfigError(
                f"the entry point '{name}' ({_origin(entries[0])}) registers no backend of that name; "
                "its pimcal_register_backends must call register(name=...) with the entry point's name"
            )
        known = self.backend_names()
        listed = f"known: {', '.join(known)}" if known else "none is installed; install pimcal (pip install pimcal)"
        return ConfigError(f"unknown backend '{name}'{did_you_mean(name, known)} ({listed})")


def _origin(entry: EntryPoint) -> Origin:
    return Origin(entry.dist, entry.module)


def _conflict(what: str, first: Origin, second: Origin) -> ConfigError:
    return ConfigError(f"two plugins claim {what}: {first}, and {second}; uninstall one of them, or rename one")


def _same_names(entries: list[EntryPoint]) -> Iterator[tuple[EntryPoint, EntryPoint]]:
    first: dict[str, EntryPoint] = {}
    for entry in entries:
        if first.setdefault(entry.name, entry) is not entry:
            yield first[entry.name], entry


def _resolve(backend: type[Backend] | str) -> Any:
    if not isinstance(backend, str):
        return backend
    module, _, attribute = backend.partition(":")
    return getattr(importlib.import_module(module), attribute)


@contextmanager
def _load_errors(what: str, origin: Origin) -> Iterator[None]:
    """Turn whatever foreign code raises while it loads into an error that names `what` and its origin."""
    try:
        yield
    except PimcalError:
        raise
    except ModuleNotFoundError as error:
        raise _missing_library(what, origin, error.name or str(error)) from error
    except Exception as error:
        raise ConfigError(
            f"{what} ({origin}) cannot be loaded: {type(error).__name__}: {error}; reinstall or repair it"
        ) from error


def _missing_library(what: str, origin: Origin, library: str) -> ConfigError:
    top = library.partition(".")[0]
    if top == origin.module.partition(".")[0]:
        return ConfigError(f"{what} ({origin}) cannot be loaded: it has no module {library}; reinstall it")
    extra = _extra_of(top, origin.distribution)
    if extra is None or origin.distribution is None:
        return ConfigError(f"{what} ({origin}) needs the library {top}, which is not installed; install it")
    if origin.distribution.name == "pimcal":
        return MissingExtraError(what, top, extra)
    return ConfigError(
        f"{what} ({origin}) needs the library {top}, which is not installed; "
        f"install it with: pip install '{origin.distribution.name}[{extra}]'"
    )


def _extra_of(library: str, distribution: Distribution | None) -> str | None:
    """The extra of `distribution` that lists `library` among its requirements."""
    for requirement in (distribution.requires if distribution else None) or []:
        match = re.match(r"([\w.-]+).*\bextra\s*==\s*['\"]([^'\"]+)", requirement)
        if match and match[1].lower().replace("-", "_") == library.lower():
            return match[2]
    return None


@cache
def default() -> Registry:
    """The registry that the functions below, the command line and the Python interface share."""
    return Registry()


def backend_names() -> list[str]:
    """See `Registry.backend_names`."""
    return default().backend_names()


def settings_model(name: str) -> type[BaseModel]:
    """See `Registry.settings_model`."""
    return default().settings_model(name)


def backend_class(name: str) -> type[Backend]:
    """See `Registry.backend_class`."""
    return default().backend_class(name)


def register_plugin(plugin: Any, name: str | None = None) -> None:
    """See `Registry.register_plugin`."""
    default().register_plugin(plugin, name)


def plugins() -> list[str]:
    """See `Registry.plugins`."""
    return default().plugins()


def metrics() -> dict[str, Metric]:
    """See `Registry.metrics`."""
    return default().metrics()


def triggers() -> dict[str, Trigger]:
    """See `Registry.triggers`."""
    return default().triggers()


def emit(event: Event) -> None:
    """Tell every plugin that listens."""
    default().notify(event)
