"""Find the Python object that `pkg.mod:name` or `file.py:name` names, and run user code safely.

User code fails for its own reasons. Whatever it raises becomes a `UsageError` that names the spec, the
exception and the line of the user's file; the original stays chained for `--debug`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pimcal.blame import blamed_on
from pimcal.errors import UsageError
from pimcal.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class UserObject:
    """An object of the user's, and the folder that its imports are looked up in."""

    spec: str
    value: Any
    folder: Path

    def call(self, *args: Any) -> Any:
        """Call the object. Raises `UsageError` for whatever its code raises."""
        with self.running():
            return self.value(*args)

    def make(self) -> Any:
        """Call the object, which must need no arguments. Raises `UsageError`, also if it needs some."""
        needed = _required_arguments(self.value)
        if needed:
            raise UsageError(f"{self.spec} needs arguments ({', '.join(needed)}); name a function that needs none")
        return self.call()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Code inside runs on behalf of the user: its imports work, its exceptions become `UsageError`."""
        with _importable(self.folder), blamed_on(self.spec):
            yield


def resolve(spec: str) -> UserObject:
    """Import what `spec` names: `pkg.mod:name` or `path/file.py:name`; `name` may be dotted.

    Modules are looked up in the working directory first, as `python -m` does; a file's neighbours can be
    imported from it, as when it is run as a script.

    Raises:
        UsageError: no such file, module or name, or the module's own code raised.
    """
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise UsageError(f"{spec!r} names no Python object; write pkg.mod:name or file.py:name")
    is_file = module_name.endswith(".py")
    folder = Path(module_name).resolve().parent if is_file else Path.cwd()
    with _importable(folder), blamed_on(spec):
        module = _import_file(Path(module_name)) if is_file else _import_module(module_name)
        value = _attribute(module, name, spec)
    return UserObject(spec, value, folder)


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"there is no module {error.name!r} in {Path.cwd()} or among the installed packages; "
                f"a file is named with its ending: {name.replace('.', '/')}.py:name"
            ) from error
        raise  # a module that the user's module imports


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    # One module a file: a model and a data set from one file share its globals, as with an import.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"{path} cannot be imported as a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _attribute(module: ModuleType, name: str, spec: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            public = [known for known in dir(value) if not known.startswith("_")]
            raise UsageError(f"{spec}: there is no {part!r} in it{did_you_mean(part, public)}")
        value = getattr(value, part)
    return value


def _required_arguments(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature; the call itself will tell
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
