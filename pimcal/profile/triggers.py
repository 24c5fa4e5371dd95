"""Whether the drift triggers that a profile names exist, and whether their limits make sense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pimcal.errors import ConfigError
from pimcal.profile.merge import child
from pimcal.profile.problems import Problem, suggestion
from pimcal.profile.sections import Recalibration
from pimcal.profile.yaml_tree import Node

if TYPE_CHECKING:
    from pimcal.recalibration.triggers import Trigger

_SMALLEST = 1e-9  # of a limit: less is nothing in any unit that a trigger has


def trigger_problems(section: Recalibration, tree: Node) -> list[Problem]:
    """What is wrong with `recalibration.when` of a valid section; `tree` is the whole profile's."""
    found: list[Problem] = []
    first: dict[str, int] = {}
    for index, (name, limit) in enumerate(pair for one in section.when for pair in one.items()):
        path, node = f"recalibration.when.{index}.{name}", _node(tree, index, name)
        if first.setdefault(name, index) != index:
            found.append(Problem(node.key_at, path, f"trigger given twice, first as recalibration.when.{first[name]}"))
            continue
        found += _problems(section, name, limit, path, node)
    return found


def _problems(section: Recalibration, name: str, limit: float, path: str, node: Node) -> Iterator[Problem]:
    try:
        triggers = _triggers(name)
    except ConfigError as error:
        yield Problem(node.key_at, path, str(error))
        return
    trigger = triggers.get(name)
    if trigger is None:
        yield Problem(node.key_at, path, f"unknown trigger; {suggestion(name, triggers)}")
        return
    if trigger.positive and limit <= 0:
        yield Problem(node.at, path, f"the limit must be above zero (got {limit:g})")
    elif not (limit == 0 or _SMALLEST <= abs(limit) <= trigger.largest):
        told = f"from {_SMALLEST:g} to {trigger.largest:g} in magnitude"
        yield Problem(node.at, path, f"a limit that means something is {told} (got {limit:g})")
    if trigger.needs_probe and section.every is None and section.cron is None:
        yield Problem(node.key_at, path, "nothing says when to probe; add recalibration.every or recalibration.cron")


def _triggers(name: str) -> dict[str, Trigger]:
    """The built-in triggers where they have the name; else those of plugins, too, which are loaded for it."""
    from pimcal.recalibration.triggers import BUILT_IN

    if name in BUILT_IN:
        return BUILT_IN
    from pimcal import registry

    return registry.triggers()


def _node(tree: Node, index: int, name: str) -> Node:
    node: Node | None = tree
    for key in ("recalibration", "when"):
        node = child(node, key) if node else None
    assert node is not None
    assert isinstance(node.value, list)
    inner = child(node.value[index], name)
    assert inner is not None
    return inner
