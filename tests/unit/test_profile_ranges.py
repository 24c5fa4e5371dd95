"""Numbers that no one can mean are refused, in every field of every profile and in every option."""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_origin

import pytest
import typer
from typer.models import OptionInfo

from pimcal.cli import app as cli
from pimcal.errors import UsageError
from pimcal.profile import ProfileError, load_profile, profile_schema

Schema = dict[str, Any]


def numbers(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Each numeric part of a JSON schema, with where it is."""
    if schema.get("type") in ("number", "integer") and "enum" not in schema:
        yield path, schema
    for key in ("anyOf", "oneOf", "prefixItems"):
        for index, inner in enumerate(schema.get(key, [])):
            yield from numbers(inner, f"{path}.{index}")
    for name, inner in {**schema.get("properties", {}), **schema.get("$defs", {})}.items():
        yield from numbers(inner, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from numbers(schema["items"], f"{path}[]")


def commands(app: typer.Typer) -> Iterator[Callable[..., Any]]:
    """The functions behind all commands."""
    yield from (command.callback for command in app.registered_commands if command.callback)
    if app.registered_callback and app.registered_callback.callback:
        yield app.registered_callback.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance)


def numeric_options(kind: type) -> dict[str, OptionInfo]:
    """The options that take such numbers, by function and parameter."""
    return {
        f"{function.__qualname__} {name}": info
        for function in commands(cli.build())
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
        for info in getattr(parameter.annotation, "__metadata__", ())
        if isinstance(info, OptionInfo) and kind in _types(get_args(parameter.annotation)[0])
    }


def _types(annotation: object) -> set[object]:
    return {each for each in get_args(annotation) or (annotation,) if get_origin(each) is None}


@pytest.mark.parametrize("backend", ["ideal", "gaussian", "aihwkit", "serial"])
def test_every_number_of_a_profile_has_a_least_and_a_largest_value(backend: str) -> None:
    found = dict(numbers(profile_schema(backend)))
    assert len(found) > 10
    unbounded = [
        path
        for path, rule in found.items()
        if not ({"minimum", "exclusiveMinimum"} & rule.keys() and {"maximum", "exclusiveMaximum"} & rule.keys())
    ]
    assert unbounded == []


@pytest.mark.parametrize(
    ("profile", "key", "value"),
    [
        ("gaussian_mul", "device.eta0", 1e308),
        ("gaussian_mul", "device.eta0", 1e-300),
        ("gaussian_mul", "device.sigma_temporal", 1e30),
        ("gaussian_mul", "device.mu_spatial", -1e-200),
        ("gaussian_mul", "device.drift", {"kind": "linear", "rate_per_s": 1e300}),
        ("gaussian_mul", "device.drift", {"kind": "random_walk", "step_s": 1e-200, "std": 0.1}),
        ("gaussian_mul", "device.drift", {"kind": "temperature", "amplitude_c": 1e9, "period_s": 60, "eta0_per_c": 0}),
        ("gaussian_mul", "tiles.rows", 10**12),
        ("gaussian_mul", "references.offset", 10**9),
        ("gaussian_mul", "calibration.images", 10**15),
        ("gaussian_mul", "calibration.momentum", 1e-300),
        ("gaussian_mul", "gate.max_drop", 5e-324),
        ("gaussian_mul", "gate.repeats", 10**9),
        ("gaussian_mul", "recalibration.every", "999999w"),
        ("gaussian_mul", "recalibration.max_per_hour", 10**9),
        ("gaussian_mul", "recalibration.when", [{"age_h": 1e300}]),
        ("gaussian_mul", "recalibration.when", [{"temperature_change_c": 1e-300}]),
        ("aihwkit_pcm", "device.forward.output_bound", 1e300),
        ("aihwkit_pcm", "device.noise", {"kind": "pcm", "g_max_microsiemens": 1e300}),
        ("aihwkit_pcm", "device.noise", {"kind": "custom", "programming_coefficients": [1e300]}),
        ("aihwkit_pcm", "device.noise", {"kind": "pcm", "t_0_s": 1e300}),
        ("board_serial", "device.margin_s", 1e300),
        ("board_serial", "device.connect_s", 1e-300),
        ("board_virtual", "device.simulator.array.temperature_c", 1e9),
        ("board_virtual", "device.simulator.array.gain_per_c", 1e300),
        ("board_virtual", "device.simulator.faults.stall_s", 1e300),
    ],
)
def test_a_number_that_no_one_can_mean_is_refused_at_its_key(profile: str, key: str, value: object) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(profile, {key: value})
    assert {problem.path.startswith(key) for problem in caught.value.problems} == {True}


@pytest.mark.parametrize("text", ["1e-400", "-0.0001e-999", ".1E-5000"])
def test_a_number_that_a_computer_would_take_for_zero_is_refused_and_zero_is_not(text: str) -> None:
    from pimcal.profile.yaml_tree import core_value

    with pytest.raises(ValueError, match="write 0"):
        core_value(text)
    assert core_value("0.000e-9999") == 0.0


@pytest.mark.parametrize(
    ("profile", "key", "value"),
    [
        ("gaussian_mul", "device.eta0", 0),
        ("gaussian_mul", "device.eta0", 30.0),
        ("gaussian_mul", "device.mu_spatial", 0),
        ("gaussian_mul", "gate.max_drop", 0),
        ("gaussian_mul", "gate.max_drop", 1e-6),
        ("gaussian_mul", "tiles.rows", 2**20),
        ("gaussian_mul", "recalibration.max_age", "3650d"),
        ("aihwkit_pcm", "device.noise", {"kind": "pcm", "t_read_s": 250e-9}),
        ("board_serial", "device.margin_s", 0.001),
    ],
)
def test_what_somebody_may_mean_is_accepted(profile: str, key: str, value: object) -> None:
    load_profile(profile, {key: value})


def test_every_number_on_the_command_line_has_a_least_and_a_largest_value() -> None:
    found = {**numeric_options(int), **numeric_options(float)}
    assert len(found) > 15
    assert [name for name, info in found.items() if info.min is None or info.max is None] == []


def test_every_number_with_a_point_on_the_command_line_refuses_nan() -> None:
    found = numeric_options(float)
    assert found
    for name, info in found.items():
        assert info.callback is not None, name
        with pytest.raises(UsageError, match="a number is needed"):
            info.callback(math.nan)
