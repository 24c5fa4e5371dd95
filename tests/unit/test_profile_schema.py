"""The JSON Schema agrees with what is loaded."""

from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from pimcal.errors import ConfigError
from pimcal.ideal import IdealSettings
from pimcal.profile import load_profile, profile_schema
from pimcal.profile.find import shipped
from pimcal_aihwkit.settings import AihwkitSettings
from pimcal_gaussian.settings import GaussianSettings
from pimcal_serial.settings import SerialSettings

SETTINGS = {"ideal": IdealSettings, "gaussian": GaussianSettings, "aihwkit": AihwkitSettings, "serial": SerialSettings}


def settings_model(backend: str) -> type[BaseModel]:
    if backend not in SETTINGS:
        raise ConfigError(f"unknown backend '{backend}'")
    return SETTINGS[backend]


def schema(backend: str | None = None) -> dict[str, Any]:
    return profile_schema(backend, settings_model)


def accepts(schema: dict[str, Any], text: str) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(yaml.safe_load(text))


@pytest.mark.parametrize("backend", [None, *SETTINGS])
def test_the_schema_is_a_schema(backend: str | None) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(backend))


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_profiles_satisfy_the_schema_as_written_and_resolved(name: str) -> None:
    profile = load_profile(name, settings_model=settings_model)
    for each in (schema(), schema(profile.backend)):
        assert accepts(each, shipped()[name].read_text())
        jsonschema.validate(profile.resolved(), each)


HEAD = "schema: pimcal/1\nbackend: gaussian\n"
DEVICE = HEAD + "device: {noise: mul, eta0: 0.1}\n"


@pytest.mark.parametrize(
    "text",
    [
        DEVICE + "recalibration: {every: 1h30m, when: [{probe_error: 0.02}]}",
        DEVICE + "recalibration: {quiet_hours: 22:00-06:00, timezone: Europe/Berlin}",
        DEVICE + "recalibration: {quiet_hours: [12:00-13:00, 22:00-24:00]}",
        DEVICE + "tiles: null\nio: {input_bits: null}\nhost: [fc]",
        "extends: gaussian_mul\n",
        HEAD + "device: {noise: mul, eta0: 1, drift: {kind: linear, rate_per_s: 1}}",
    ],
)
def test_the_schema_accepts_what_a_profile_may_hold(text: str) -> None:
    assert accepts(schema("gaussian"), text)


@pytest.mark.parametrize(
    "text",
    [
        "backend: gaussian",
        DEVICE + "tile: {rows: 3}",
        DEVICE + "tiles: {rows: 0}",
        DEVICE + "io: {input_bits: 17}",
        DEVICE + "recalibration: {every: 1 hour}",
        DEVICE + "recalibration: {when: [{a: 1, b: 2}]}",
        DEVICE + "recalibration: {quiet_hours: 24:00-06:00}",
        DEVICE + "recalibration: {quiet_hours: [22:00-06:00, 6]}",
        HEAD + "device: {noise: mull, eta0: 0.1}",
        HEAD + "device: {noise: mul, eta0: 0.1, drift: {kind: linear}}",
        DEVICE.replace("gaussian", "ideal"),
    ],
)
def test_the_schema_refuses_what_loading_refuses(text: str) -> None:
    assert not accepts(schema("gaussian"), text)


def test_a_schema_for_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown backend 'x'"):
        schema("x")
