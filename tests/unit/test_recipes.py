"""What `--methods` can name, and what becomes of a profile for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pimcal
from pimcal.calibration.methods import METHODS
from pimcal.errors import UsageError
from pimcal.recipes import Recipe, parse_recipe, with_references, with_seed


@pytest.mark.parametrize(
    ("name", "references", "method"),
    [("none", False, None), ("references", True, None)]
    + [(method, False, method) for method in METHODS]
    + [(f"references+{method}", True, method) for method in METHODS],
)
def test_recipes_are_read_from_their_names(name, references, method):
    assert parse_recipe(name) == Recipe(name, references, method)
    assert parse_recipe(name, gdc=True) == Recipe(name, references, method)


@given(references=st.booleans(), method=st.sampled_from([None, *METHODS]))
def test_drift_compensation_stands_between_references_and_the_calibration(references, method):
    name = "+".join([*["references"] * references, "gdc", *([method] if method else [])])
    assert parse_recipe(name, gdc=True) == Recipe(name, references, method, gdc=True)
    with pytest.raises(UsageError):
        parse_recipe(name)


UNKNOWN = ["", "pairde", "none+paired", "paired+references", "references+", "references+none", "paired+affine", "a+b+c"]


@pytest.mark.parametrize("gdc", [False, True])
@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_recipes_are_refused_with_the_known_ones(name, gdc):
    with pytest.raises(UsageError) as refused:
        parse_recipe(name, gdc=gdc)
    parts = ", ".join(["none", "references", *["gdc"] * gdc, *METHODS])
    assert str(refused.value).startswith(f"unknown method '{name}' in --methods")
    assert f"(known: {parts}; joined in this order, at most one of {', '.join(METHODS)}: references+" in str(
        refused.value
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("paired+gdc", "gdc+paired"),
        ("paired+references", "references+paired"),
        ("paired+gdc+references", "references+gdc+paired"),
        ("gcd+paired", "gdc+paired"),
        ("gdc+pairde", "gdc+paired"),
        ("refrences", "references"),
    ],
)
def test_the_recipe_that_was_meant_is_suggested(name, meant):
    with pytest.raises(UsageError, match=r"in --methods; did you mean '(.*)'\? \(known") as refused:
        parse_recipe(name, gdc=True)
    assert f"did you mean '{meant}'?" in str(refused.value)


def test_references_are_added_kept_or_taken_away():
    bare = pimcal.load_profile("gaussian_mul")
    own = bare.with_overrides({"references.offset": 2})
    counts = [
        (p.references.offset, p.references.gain)
        for profile in (bare, own)
        for p in (with_references(profile, True), with_references(profile, False))
    ]
    assert counts == [(1, 1), (0, 0), (2, 0), (0, 0)]


def test_seed_goes_to_devices_that_have_one():
    assert with_seed(pimcal.load_profile("gaussian_add"), 11).settings.seed == 11
    ideal = pimcal.load_profile("ideal")
    assert with_seed(ideal, 11) is ideal
