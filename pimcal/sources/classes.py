"""Which number the class of a folder has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pimcal.errors import DataError

CLASS_FILES = ("classes.txt", "class_to_idx.json")
_PART = re.compile(
    r"(train|val|valid|test|eval|dev)(ing|idation|uation)?[-_ ]?(set|data|images)?[-_ ]?\d*"
    r"|images|labels|masks|annotations",
    re.IGNORECASE,
)


def class_file(folder: Path) -> Path | None:
    """`classes.txt` or `class_to_idx.json` in `folder`, if there is one."""
    return next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)


def ordered_classes(folder: Path, names: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """The number of each class folder in `names`, and what a user should know about them.

    Folders whose names all are numbers are numbered in the order of these, others by the alphabet.

    Raises:
        DataError: the folders are parts of a data set and no classes.
    """
    _check_classes(folder, names)
    if all(re.fullmatch("[0-9]+", name) for name in names):
        ordered = sorted(names, key=lambda name: (int(name), name))
        told = [int(name) for name in ordered] != list(range(len(ordered)))
    else:
        ordered = sorted(names)
        told = ordered != sorted(names, key=_natural)
    remark = f"{folder}: classes are numbered in this order: {_listed(ordered)}; --classes FILE gives other numbers"
    return {name: number for number, name in enumerate(ordered)}, [remark] if told else []


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    parts = [name for name in names if _PART.fullmatch(name)]
    if len(parts) > 1 or len(parts) == len(names):
        likely = next((part for part in parts if part.lower().startswith(("val", "test"))), parts[0])
        raise DataError(
            f"{folder} has {' and '.join(parts)}, parts of a data set and no classes; name one of them, for example "
            f"imagefolder:{folder / likely} (where they are classes all the same, number them in --classes FILE)"
        )


def listed_classes(file: Path, folder: Path, names: Sequence[str]) -> dict[str, int]:
    """The number that `file` gives each class folder in `names`.

    Raises:
        DataError: the file is unreadable, or lacks one of them.
    """
    known = _read_classes(file)
    lacking = [name for name in names if name not in known]
    if lacking:
        raise DataError(
            f"{file} has no class {_listed(lacking)}, which {folder} has; it has {_listed(list(known)) or 'none'}"
        )
    return {name: known[name] for name in names}


def _read_classes(file: Path) -> dict[str, int]:
    """Class numbers by folder name: a text file with a name a line, or JSON.

    JSON is `{name: number}`, a list of names, or `{number: name}`, where a list stands for its first entry.

    Raises:
        DataError: the file is absent or something else, or a name or a number is there twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix.lower() == ".json":
            return _checked(_from_json(json.loads(text)), file)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is no readable file of classes: {error}") from error
    return _checked(list(enumerate(line.strip() for line in text.rstrip().splitlines())), file)


def _from_json(content: Any) -> list[tuple[int, str]]:
    if isinstance(content, list):
        return [*enumerate(content)]
    if not isinstance(content, Mapping):
        raise ValueError('{"name": 0, ...} or ["name", ...] is expected')
    if all(isinstance(value, int) for value in content.values()):
        return [(number, name) for name, number in content.items()]
    return [(int(number), name[0] if isinstance(name, list) and name else name) for number, name in content.items()]


def _checked(pairs: Sequence[tuple[int, Any]], file: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, name in pairs:
        if not isinstance(name, str) or not name or name in found or isinstance(number, bool) or number < 0:
            raise DataError(f"{file}: {name!r} (number {number}) is no class name, or is there twice")
        found[name] = number
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]+)", name)]


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
