"""Where profiles are: files that a user names, and those shipped with pimcal."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from pimcal.profile.problems import Position, Problem, ProfileError, suggestion

SUFFIXES = (".yaml", ".yml")


class Source(NamedTuple):
    """A profile's file, the name it goes by, and the path to show in messages."""

    path: Path
    name: str
    shown: str


def shipped_folder() -> Path:
    """The checkout's `hw_profiles/` (always current), else the copy inside the installed package."""
    package = Path(__file__).parents[1]
    checkout = package.parent
    in_checkout = (checkout / "pyproject.toml").is_file() and (checkout / "hw_profiles").is_dir()
    return (checkout if in_checkout else package) / "hw_profiles"


def shipped() -> dict[str, Path]:
    """The shipped profiles by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def find(name_or_file: str | Path, folder: Path | None = None, asked_at: Position | None = None) -> Source:
    """A file (it has a YAML suffix or a path separator, or it exists), else a shipped profile.

    Relative files are looked for in `folder`, the working directory unless given. Raises ProfileError, at the
    position `asked_at` that named the profile, where nothing is found.
    """
    text = str(name_or_file)
    path = (folder or Path()) / text
    if text.endswith(SUFFIXES) or os.sep in text or "/" in text or stat.S_ISREG(_mode(path)):
        return Source(_checked(path, text, asked_at), path.stem, str(path))
    names = shipped()
    if text not in names:
        message = f"no profile is called '{text}'; {_hint(text)}"
        raise ProfileError([Problem(asked_at or Position(""), "extends" if asked_at else "", message)])
    return Source(names[text], text, _shown(names[text]))


def _checked(path: Path, text: str, asked_at: Position | None) -> Path:
    mode = _mode(path)
    if stat.S_ISREG(mode):
        return path
    what = "is a folder, not a profile" if stat.S_ISDIR(mode) else "is no regular file" if mode else "does not exist"
    message = f"{path} {what}; {_hint(Path(text).stem)}"
    raise ProfileError([Problem(asked_at or Position(""), "extends" if asked_at else "", message)])


def _mode(path: Path) -> int:
    """The file's type and permissions; 0 where there is none, or where no file can have such a name."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _hint(word: str) -> str:
    names = list(shipped())
    hint = suggestion(word, names)
    listed = f"shipped profiles: {', '.join(names)}"
    return f"{hint} {listed}" if hint.startswith("did") else listed


def _shown(path: Path) -> str:
    """Relative to the working directory where the file lies in it: shorter to read and to click."""
    working = Path.cwd()
    return str(path.relative_to(working)) if path.is_relative_to(working) else str(path)
