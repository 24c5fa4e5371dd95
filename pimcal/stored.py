"""What is read from a file is checked here, against the types of the class that it becomes, before anybody uses it.

Classes that are read from files are annotated with these types. Nothing is converted: a number in the place of a text
is a mistake, not another spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from pimcal.shown import one_line

T = TypeVar("T")

Text = Annotated[str, Field(strict=True, max_length=100_000)]
Hash = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{64}$")]  # SHA-256
Number = Annotated[float, Field(strict=True)]  # NaN where it could not be told
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e15, le=1e15)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]  # what a database can hold
Truth = Annotated[bool, Field(strict=True)]
Details = dict[Text, JsonValue]

KNOWN_KEYS_ONLY = ConfigDict(extra="forbid")  # for `__pydantic_config__`


def checked(kind: type[T], values: Mapping[str, Any]) -> T:
    """An object of the class `kind`. Raises ValueError, with the first thing that is wrong with `values`."""
    key: Any = kind  # mypy takes no class for hashable
    try:
        found: T = _adapter(key).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        told = f"{where}: {first['msg']} (got {repr(first['input'])[:60]})"
        raise ValueError(one_line(told)) from error
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
