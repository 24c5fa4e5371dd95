"""pydantic's errors as problems with a position, in the words of somebody who writes YAML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pimcal.profile.dump import flow
from pimcal.profile.problems import Problem, suggestion
from pimcal.profile.yaml_tree import Node

Location = tuple[int | str, ...]

_MESSAGES = {
    **dict.fromkeys(("model_type", "dict_type", "model_attributes_type"), "must be a mapping (key: value)"),
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), "must be a list"),
}
_YAML_1_1_TRUTH = {"yes", "no", "on", "off", "y", "n"}


def explain(error: ValidationError, model: type[BaseModel], tree: Node, path: str = "") -> list[Problem]:
    """One problem for each error that `model` found in `tree`, which stands at the dotted `path`."""
    return [explained(details, model, tree, path) for details in error.errors(include_url=False)]


def explained(details: ErrorDetails, model: type[BaseModel], tree: Node, path: str = "") -> Problem:
    """One of them."""
    node, names = _locate(tree, details["loc"])
    here = ".".join(filter(None, [path, *names]))
    match details["type"]:
        case "missing":
            return Problem(node.key_at, _join(here, details["loc"][-1]), "needed, but not there")
        case "extra_forbidden":
            return Problem(node.key_at, here, f"unknown key; {_nearest(here, model, details['loc'])}")
    return Problem(node.at, here, _message(details, node))


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _locate(root: Node, location: Location) -> tuple[Node, list[str]]:
    """The innermost node of a location, and its keys; pydantic mixes in names of union members: skipped."""
    node, names = root, []
    for part in location:
        inner = _step(node, part)
        if inner is not None:
            node = inner
            names.append(str(part))
    return node, names


def _step(node: Node, part: int | str) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(str(part))
    if isinstance(node.value, list) and isinstance(part, int):
        return node.value[part]
    return None


def _message(details: ErrorDetails, node: Node) -> str:
    message = _MESSAGES.get(details["type"], details["msg"])
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    if details["type"] == "bool_type" and str(node.value).lower() in _YAML_1_1_TRUTH:
        message += ", written true or false"
    return message if isinstance(node.value, dict) else f"{message} (got {_shortened(flow(node.plain()))})"


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(path: str, model: type[BaseModel], location: Location) -> str:
    parent, _, name = path.rpartition(".")
    text = suggestion(name, known_keys(model, location[:-1]))
    return text.replace("mean '", f"mean '{parent}.") if parent else text


def known_keys(model: type[BaseModel], location: Location) -> set[str]:
    """The keys that a model allows at a location of one of its errors."""
    models = [model]
    for part in location:
        inner = [found for each in models for found in _field_models(each, part)]
        models = inner or [each for each in models if _is_tagged(each, part)] or models
    return {info.alias or name for each in models for name, info in each.model_fields.items()}


def _field_models(model: type[BaseModel], key: int | str) -> list[type[BaseModel]]:
    fields = model.model_fields.items()
    return [found for name, info in fields if key in (name, info.alias) for found in _models(info.annotation)]


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _is_tagged(model: type[BaseModel], tag: int | str) -> bool:
    """Whether a model is the member of a union that pydantic calls `tag`."""
    literals = (info.annotation for info in model.model_fields.values())
    tags = {value for each in literals if get_origin(each) is Literal for value in get_args(each)}
    return tag == model.__name__ or tag in tags
