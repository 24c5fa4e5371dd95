"""From a name or a file to a validated profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from pimcal.files import open_regular
from pimcal.profile.find import Source, find, shipped, shipped_folder
from pimcal.profile.merge import child, merged
from pimcal.profile.model import Profile, SettingsModel, resolve
from pimcal.profile.overrides import override_tree
from pimcal.profile.problems import Position, Problem, ProfileError
from pimcal.profile.yaml_tree import MAX_BYTES, Node, decoded, read_tree

MAX_PARENTS = 16  # files that build on each other, in a row


class ProfileSummary(NamedTuple):
    """A line of the list of shipped profiles."""

    name: str
    backend: str
    description: str


def load_profile(
    name_or_file: str | Path,
    overrides: Mapping[str, object] | None = None,
    settings_model: SettingsModel | None = None,
) -> Profile:
    """Load a shipped profile by name, or a file, with `overrides` such as `{"device.eta0": 0.1}` laid on it.

    `settings_model` gives the pydantic model of a backend's `device:` section, by the backend's name; left
    out, the registry of installed backends does. Raises ProfileError, which lists every mistake as
    file:line:column.
    """
    problems: list[Problem] = []
    source = find(name_or_file)
    try:
        tree = merged(merged_tree(source, problems), override_tree(overrides or {}))
    except ProfileError as error:
        raise ProfileError([*problems, *error.problems]) from error
    return resolve(tree, source.name, settings_model or registered_settings_model, problems)


def source_text(name_or_file: str | Path) -> str:
    """A profile as it is written. Raises ProfileError where it cannot be found or is no UTF-8 text."""
    source = find(name_or_file)
    return decoded(_read(source), source.shown)


def registered_settings_model(backend: str) -> type[BaseModel]:
    """The settings model of an installed backend. Raises ConfigError where there is none of that name."""
    from pimcal.registry import settings_model  # loads plugins: only when a profile needs them

    return settings_model(backend)


def merged_tree(source: Source, problems: list[Problem], chain: tuple[Source, ...] = ()) -> Node:
    """A profile laid on all that it extends.

    Raises ProfileError where a file is missing, in a circle, or at the end of too long a chain.
    """
    tree = read_tree(_read(source), source.shown, problems)
    if not isinstance(tree.value, dict):
        raise ProfileError([Problem(tree.at, "", "a profile is a mapping (key: value)")])
    own = Node({key: node for key, node in tree.value.items() if key != "extends"}, tree.at, tree.key_at)
    parent = child(tree, "extends")
    if parent is None or parent.value is None:
        return own
    chain = (*chain, source)
    return merged(merged_tree(_parent(parent, source, chain), problems, chain), own)


def _parent(extends: Node, source: Source, chain: tuple[Source, ...]) -> Source:
    if not isinstance(extends.value, str):
        raise ProfileError([Problem(extends.at, "extends", "must be the name or the file of one profile")])
    parent = find(extends.value, Path(source.shown).parent, extends.at)
    told = " -> ".join(each.shown for each in (*chain, parent))
    if any(parent.path.resolve() == each.path.resolve() for each in chain):
        raise ProfileError([Problem(extends.at, "extends", f"goes in a circle: {told}")])
    if len(chain) > MAX_PARENTS:
        message = f"a profile may build on {MAX_PARENTS} others in a row, and here are more: {told}"
        raise ProfileError([Problem(extends.at, "extends", message)])
    return parent


def _read(source: Source) -> bytes:
    try:
        with open_regular(source.path) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ProfileError([Problem(Position(source.shown), "", f"cannot be read: {reason}")]) from error


def list_profiles() -> tuple[ProfileSummary, ...]:
    """The shipped profiles; the description is the first line of a file, a comment."""
    return tuple(_summary(name) for name in shipped())


def _summary(name: str) -> ProfileSummary:
    source = find(shipped_folder() / f"{name}.yaml")
    backend = child(merged_tree(source, []), "backend")
    first = source.path.read_text(encoding="utf-8").partition("\n")[0]
    return ProfileSummary(name, str(backend.value) if backend else "", first.lstrip("# ").rstrip(". "))
