"""What may leave the machine: messages without the names of its folders."""

from __future__ import annotations

import re
from typing import Any

_FOLDERS = re.compile(r"(?<![\w./~-])[~.]{0,2}/(?:[^\s/:;,()'\"]+/)*(?=[^\s/:;,()'\"])")


def without_folders(value: Any) -> Any:
    """The same JSON value, in whose texts a path has become a file's name."""
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return value
