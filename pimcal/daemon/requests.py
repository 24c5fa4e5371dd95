"""What a daemon can be asked, and what each request may say."""

from __future__ import annotations

from collections.abc import Mapping

from pimcal.errors import UsageError

FIELDS: Mapping[str, Mapping[str, type]] = {
    "status": {}, "run-now": {"calibrate": bool}, "pause": {}, "resume": {}, "release": {"for": str}, "stop": {},
}  # fmt: skip
_TOLD = {bool: "true or false", str: 'a text, such as "30m"'}


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
