"""What can be wrong with a profile, where it stands, and the error that reports it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pimcal.errors import ConfigError
from pimcal.shown import one_line
from pimcal.suggest import closest


class Position(NamedTuple):
    """A place in a file, counted from 1; line 0 where `file` says all, as "-O key=value" does."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return one_line(f"{self.file}:{self.line}:{self.column}" if self.line else self.file)


class Problem(NamedTuple):
    """One mistake: where it is, the dotted path of the key ("" for the whole file), and what to do."""

    at: Position
    path: str
    message: str

    def __str__(self) -> str:
        named_already = self.at.file.startswith(f"-O {self.path}=")
        parts = (str(self.at), "" if named_already else self.path, self.message)
        return one_line(": ".join(filter(None, parts)))  # keys are quoted as they are written


class ProfileError(ConfigError):
    """A profile cannot be found, read or understood; `problems` lists every reason."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[ProfileError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "did you mean ...?" for the nearest of `known`, else the list of them."""
    names = sorted(known)
    near = closest(word, names)
    if near is not None:
        return f"did you mean '{near}'?"
    return f"known: {', '.join(names)}" if names else "none is known here"
