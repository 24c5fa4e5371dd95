"""A validated profile, and how a merged tree becomes one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from pimcal.errors import ConfigError
from pimcal.profile.explain import explain, explained
from pimcal.profile.merge import child, merged, pruned
from pimcal.profile.overrides import override_tree
from pimcal.profile.problems import Problem, ProfileError
from pimcal.profile.sections import Calibration, Gate, Io, Recalibration, References, Section, Tiles
from pimcal.profile.triggers import trigger_problems
from pimcal.profile.yaml_tree import Node

SettingsModel = Callable[[str], type[BaseModel]]
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_PROCEDURE = ("calibration", "gate", "recalibration")


def _sha256(values: dict[str, JsonValue]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Profile(Section):
    """What a device is and how to use it. Made by `load_profile`; a copy with changes by `with_overrides`."""

    schema_version: Literal["pimcal/1"] = Field(alias="schema", description="version of this format")
    backend: str = Field(min_length=1, description="name of the backend that drives the device")
    device: dict[str, JsonValue] = Field({}, description="the backend's own settings")
    tiles: Tiles = Tiles()
    io: Io = Io()
    host: tuple[str, ...] = Field((), description="layers kept digital, by glob pattern on their names")
    references: References = References()
    calibration: Calibration = Calibration()
    gate: Gate = Gate()
    recalibration: Recalibration = Recalibration()

    _name: str = PrivateAttr("")
    _settings: BaseModel | None = PrivateAttr(None)
    _tree: Node | None = PrivateAttr(None)
    _settings_model: SettingsModel | None = PrivateAttr(None)

    @field_validator("references")
    @classmethod
    def _leave_columns(cls, references: References, info: ValidationInfo) -> References:
        tiles = info.data.get("tiles")
        if tiles and tiles.cols and references.offset + references.gain >= tiles.cols:
            raise ValueError(f"no column is left for weights on tiles of {tiles.cols} columns")
        return references

    @property
    def name(self) -> str:
        """The shipped name, or the file's name without its suffix."""
        return self._name

    @property
    def settings(self) -> BaseModel:
        """The device section as the backend's own settings."""
        return _made_by_load(self._settings)

    @property
    def origin(self) -> dict[str, str]:
        """Where each value was written: dotted key to `file:line:column`; defaults are not in it."""
        return {path: str(node.at) for path, node in _made_by_load(self._tree).leaves() if path}

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the resolved profile; the same for every spelling of the same values."""
        return _sha256(self.resolved())

    @property
    def hardware_hash(self) -> str:
        """The same over `hardware`."""
        return _sha256(self.hardware)

    @property
    def hardware(self) -> dict[str, JsonValue]:
        """Every value that a correction depends on.

        Neither how calibrations are made, judged and scheduled, nor what a backend's settings list in `LINK`: how the
        device is reached.
        """
        values = {key: value for key, value in self.resolved().items() if key not in _PROCEDURE}
        link = set(getattr(type(self.settings), "LINK", ()))
        return {
            **values,
            "device": self.settings.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=link),
        }

    def resolved(self) -> dict[str, JsonValue]:
        """Every value, defaults included, as plain data that a profile file could hold."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        device = self.settings.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {key: device if key == "device" else value for key, value in values.items()}

    def with_overrides(self, overrides: Mapping[str, object]) -> Profile:
        """The profile with some values replaced, e.g. `{"device.eta0": 0.1}`. Raises ProfileError."""
        tree = merged(_made_by_load(self._tree), override_tree(overrides))
        return resolve(tree, self.name, _made_by_load(self._settings_model), [])


def _made_by_load(value: T | None) -> T:
    if value is None:
        raise ConfigError("this profile was not made by load_profile, so it lacks its device settings")
    return value


def resolve(tree: Node, name: str, settings_model: SettingsModel, problems: list[Problem]) -> Profile:
    """Validate a merged tree; ProfileError lists what is wrong together with the `problems` found before."""
    found: list[Problem] = []
    profile = _validated(Profile, tree, "", found)
    settings = _settings(tree, settings_model, found)
    if profile is not None and settings is not None:
        found += _misfits(profile, settings, tree)
    if profile is not None:
        found += trigger_problems(profile.recalibration, tree)
    reported = {problem.path for problem in problems}
    problems = problems + [problem for problem in found if problem.path not in reported]
    if problems or profile is None or settings is None:
        raise ProfileError(sorted(problems, key=lambda problem: problem.at))
    profile._name, profile._tree = name, pruned(tree)
    profile._settings, profile._settings_model = settings, settings_model
    return profile


def _settings(tree: Node, settings_model: SettingsModel, problems: list[Problem]) -> BaseModel | None:
    backend = child(tree, "backend")
    if backend is None or not isinstance(backend.value, str):
        return None
    try:
        model = settings_model(backend.value)
    except ConfigError as error:
        problems.append(Problem(backend.at, "backend", str(error)))
        return None
    device = child(tree, "device")
    if device is None or device.value is None:
        device = Node({}, tree.at, tree.key_at)
    return _validated(model, device, "device", problems) if isinstance(device.value, dict) else None


def _misfits(profile: Profile, settings: BaseModel, tree: Node) -> list[Problem]:
    """What a backend's settings do not allow in the `tiles:` part; a settings model may have a method that tells."""
    check = getattr(settings, "misfits", None)
    found: Iterable[tuple[str, str]] = check(profile.tiles) if callable(check) else ()
    return [Problem(_at(tree, path).at, path, message) for path, message in found]


def _at(tree: Node, path: str) -> Node:
    """The node at a dotted path, or the innermost one above it that was written."""
    for key in path.split("."):
        tree = child(tree, key) or tree
    return tree


def _validated(model: type[M], tree: Node, path: str, problems: list[Problem]) -> M | None:
    """JSON's strict mode: text is never taken for a number, while lists and whole numbers convert."""
    problems += _unknown_nulls(model, tree, path)
    try:
        return model.model_validate_json(json.dumps(pruned(tree).plain()), strict=True)
    except ValidationError as error:
        problems += explain(error, model, pruned(tree), path)
        return None


def _unknown_nulls(model: type[BaseModel], tree: Node, path: str) -> list[Problem]:
    """What is null, and so left out, under a name that the model does not know."""
    if all(node.value is not None for _, node in tree.leaves()):
        return []
    try:
        model.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        unknown = [each for each in error.errors() if each["type"] == "extra_forbidden" and each["input"] is None]
        return [explained(details, model, tree, path) for details in unknown]
    return []
