"""Did you mean ...? For every message about a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known name that `word` most likely means, if one is near enough."""
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"`, or an empty string where no known name is near."""
    near = closest(word, known)
    return "" if near is None else f"; did you mean '{near}'?"
