"""A JSON Schema of profile files, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any

from pimcal.profile.model import Profile, SettingsModel

Schema = dict[str, Any]


def profile_schema(backend: str | None = None, settings_model: SettingsModel | None = None) -> Schema:
    """JSON Schema (draft 2020-12) of a profile; with `backend`, of one for it, its device section included.

    Raises ConfigError where the backend is unknown.
    """
    schema = Profile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"] = {"extends": _EXTENDS, **schema["properties"]}
    if backend is not None:
        _add_backend(schema, backend, settings_model or _registered)
    for model in (schema, *schema["$defs"].values()):
        _allow_null(model)
    schema["anyOf"] = [{"required": ["extends"]}, {"required": schema.pop("required")}]
    return schema


_EXTENDS = {"type": "string", "description": "name or file of the profile that this one builds on"}


def _registered(backend: str) -> Any:
    from pimcal.profile.load import registered_settings_model

    return registered_settings_model(backend)


def _add_backend(schema: Schema, backend: str, settings_model: SettingsModel) -> None:
    device = settings_model(backend).model_json_schema(ref_template="#/$defs/device.{model}")
    schema["$defs"].update({f"device.{name}": model for name, model in device.pop("$defs", {}).items()})
    schema["properties"]["backend"] = {"const": backend}
    schema["properties"]["device"] = device
    _allow_null(device)


def _allow_null(model: Schema) -> None:
    """A key that may be left out may also be null, which means the same."""
    needed = model.get("required", [])
    for name, rule in model.get("properties", {}).items():
        if name not in needed and {"type": "null"} not in rule.get("anyOf", []):
            model["properties"][name] = {"anyOf": [rule, {"type": "null"}]}
