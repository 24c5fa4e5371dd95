"""Overrides: single values laid over a profile, from the command line's `-O key=value` or from Python."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real

import yaml

from pimcal.errors import UsageError
from pimcal.profile.dump import flow
from pimcal.profile.merge import merged
from pimcal.profile.problems import Position, Problem, ProfileError
from pimcal.profile.yaml_tree import MAX_DEPTH, Node, read_tree


def parse_override(text: str) -> tuple[str, object]:
    """Split `device.eta0=0.1` into its dotted key and its value, read by the rules of a profile's YAML.

    Raises UsageError where the text is no `key=value`, or the value no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"-O {text}: write KEY=VALUE, for example -O device.eta0=0.1")
    if not value.strip():
        raise UsageError(f"-O {text}: no value; write {key}=null to leave the key out")
    problems: list[Problem] = []
    try:
        tree = read_tree(value.encode("utf-8", "surrogateescape"), "", problems)
    except ProfileError as error:
        problems = list(error.problems)
    if problems:
        raise UsageError(f"-O {text}: {'; '.join(problem.message for problem in problems)}")
    return key.strip(), tree.plain()


def override_tree(overrides: Mapping[str, object]) -> Node:
    """One tree of all overrides, each value at the position `-O key=value`.

    Raises ProfileError where a key is no dotted name or a value is no plain data.
    """
    origin = Position("-O")
    tree = Node({}, origin, origin)
    problems: list[Problem] = []
    for key, value in overrides.items():
        try:
            tree = merged(tree, _single(key, value))
        except ProfileError as error:
            problems += error.problems
    if problems:
        raise ProfileError(problems)
    return tree


def _single(key: str, value: object) -> Node:
    parts, label = key.split("."), f"-O {_shortened(key)}"
    if not all(parts):
        raise ProfileError([Problem(Position(label), "", "a key is names joined by dots")])
    if len(parts) > MAX_DEPTH:
        raise ProfileError([Problem(Position(label), "", f"{len(parts)} levels, and no key has more than {MAX_DEPTH}")])
    node = _read_back(value, f"{label}=")
    for part in reversed(parts):
        node = Node({part: node}, node.at, node.at)
    return node


def _read_back(value: object, label: str) -> Node:
    """A Python value as a tree, by way of its YAML text, so that the rules of files hold for it too."""
    problems: list[Problem] = []
    try:
        text = flow(_without_numpy(value))
        tree = read_tree(text.encode(), "", problems)
    except ProfileError as error:
        problems += error.problems
    except yaml.YAMLError as error:
        at = Position(label + _shortened(repr(value)))
        raise ProfileError([Problem(at, "", f"{type(value).__name__} is no plain data")]) from error
    except RecursionError as error:
        raise ProfileError([Problem(Position(label), "", "nested too deeply")]) from error
    at = Position(label + _shortened(text))
    if problems:
        raise ProfileError([Problem(at, "", problem.message) for problem in problems])
    return _placed(tree, at)


def _without_numpy(value: object) -> object:
    """Numbers, tuples and mappings of any library as Python's own."""
    if isinstance(value, Mapping):
        return {str(key): _without_numpy(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numpy(item) for item in value]
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, Integral) else value


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _placed(node: Node, at: Position) -> Node:
    if isinstance(node.value, dict):
        return Node({key: _placed(entry, at) for key, entry in node.value.items()}, at, at)
    if isinstance(node.value, list):
        return Node([_placed(item, at) for item in node.value], at, at)
    return Node(node.value, at, at)
