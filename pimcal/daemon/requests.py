"""What a daemon can be asked, and what each request may say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pimcal.errors import UsageError

FIELDS: Mapping[str, Mapping[str, type]] = {
    "status": {}, "run-now": {"calibrate": bool}, "pause": {}, "resume": {}, "release": {"for": str}, "stop": {},
}  # fmt: skip
_TOLD = {bool: "true or false", str: 'a text, such as "30m"'}


def parse_request(line: bytes) -> dict[str, Any]:
    """The JSON object that a request is. Raises UsageError for anything else, and for a name that it has twice."""
    try:
        found = json.loads(line.decode(), object_pairs_hook=_once_each, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise UsageError("a request is one line with a JSON object, in UTF-8") from error
    except (ValueError, RecursionError) as error:
        told = str(error) if isinstance(error, _AmbiguousError) else "a request is one line with a JSON object"
        raise UsageError(told) from error
    if not isinstance(found, dict):
        raise UsageError("a request is a JSON object")
    return found


class _AmbiguousError(ValueError):
    """JSON that readers understand differently."""


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _AmbiguousError("a request has each name once")
    return found


def _no_number(text: str) -> float:
    raise _AmbiguousError(f"{text} is no number in JSON")


def check_request(asked: object, fields: Mapping[str, object]) -> None:
    """Raises UsageError for a request that there is not, and for fields that it does not have."""
    if not isinstance(asked, str) or asked not in FIELDS:
        raise UsageError(f"there is no request {asked!r}; known: {', '.join(FIELDS)}")
    known = FIELDS[asked]
    for name, value in fields.items():
        if name not in known:
            raise UsageError(f"{asked} has no field {name!r}; known: {', '.join(known) or 'none'}")
        if not isinstance(value, known[name]):
            raise UsageError(f"{asked}: `{name}` must be {_TOLD[known[name]]}, not {value!r}")
    if asked == "release" and "for" not in fields:
        raise UsageError("release needs `for`, a duration such as 30m")
