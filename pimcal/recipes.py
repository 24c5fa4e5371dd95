"""What a comparison runs side by side: reference columns, drift compensation and a calibration method, by one name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pimcal.calibration.methods import METHODS, Method
from pimcal.errors import UsageError
from pimcal.profile import Profile
from pimcal.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method as `--methods` names it: `none`, or of `references`, `gdc` and one calibration method what is joined
    by a plus sign, in this order. `gdc` is global drift compensation."""

    name: str
    references: bool = False
    method: Method | None = None
    gdc: bool = False


def parse_recipe(name: str, *, gdc: bool = False) -> Recipe:
    """The recipe of that name; `gdc`: time passes, so that drift compensation may be part of it.

    Raises UsageError for a recipe that does not exist.
    """
    recipes = {recipe.name: recipe for recipe in _recipes(gdc)}
    if name in recipes:
        return recipes[name]
    parts = ["none", "references", *(["gdc"] if gdc else []), *METHODS]
    ordered = "+".join(sorted(name.split("+"), key=lambda part: parts.index(part) if part in parts else -1))
    hint = f"; did you mean '{ordered}'?" if ordered in recipes else did_you_mean(name, recipes)
    example = "references+gdc+paired" if gdc else "references+paired"
    raise UsageError(
        f"unknown method '{name}' in --methods{hint} "
        f"(known: {', '.join(parts)}; joined in this order, at most one of {', '.join(METHODS)}: {example})"
    )


def _recipes(gdc: bool) -> Iterator[Recipe]:
    """Every combination there is."""
    for references, compensated in itertools.product((False, True), (False, True) if gdc else (False,)):
        for method in (None, *METHODS):
            parts = [*["references"] * references, *["gdc"] * compensated, *([method] if method else [])]
            yield Recipe("+".join(parts) or "none", references, method, compensated)


def with_references(profile: Profile, wanted: bool) -> Profile:
    """The profile with its reference columns, or with one of each where it has none; or without any."""
    columns = profile.references
    if not wanted:
        return profile.with_overrides({"references.offset": 0, "references.gain": 0})
    if columns.offset or columns.gain:
        return profile
    return profile.with_overrides({"references.offset": 1, "references.gain": 1})


def with_seed(profile: Profile, seed: int) -> Profile:
    """The profile with its device's seed set, where its backend draws random numbers at all."""
    if "seed" not in type(profile.settings).model_fields:
        return profile
    return profile.with_overrides({"device.seed": seed})
