"""Where two profiles differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(first: Any, second: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys at which plain data differs, with both values; None where there is none."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(first.keys() | second.keys()):
            yield from differences(first.get(key), second.get(key), f"{path}.{key}" if path else key)
    elif first != second:
        yield path, first, second
