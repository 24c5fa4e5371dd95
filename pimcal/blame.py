"""Whose mistake an exception is: code of the user's fails for its own reasons, and is told where.

The original exception stays chained, for `--debug`.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pimcal.errors import PimcalError, UsageError

_LIBRARIES = tuple(sysconfig.get_paths()[k] + os.sep for k in ("stdlib", "platstdlib", "purelib", "platlib"))
_PIMCAL = str(Path(__file__).parent) + os.sep


@contextmanager
def blamed_on(what: str) -> Iterator[None]:
    """Whatever the code inside raises becomes a `UsageError` that says `what` failed, how, and where.

    Errors of pimcal pass, and so does whatever is no `Exception`, such as an interrupt.
    """
    try:
        yield
    except PimcalError:
        raise
    except (Exception, SystemExit) as error:  # a script without a main guard may call sys.exit
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise UsageError(f"{what} failed with {reason}{location(error)}") from error


def location(error: BaseException) -> str:
    """Where the user can act: the last line outside the installed libraries, else the last line at all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_PIMCAL, "<"))]
    users = [f for f in frames if not f.filename.startswith(_LIBRARIES)]
    last = (users or frames)[-1:]
    return "".join(f" ({frame.filename}:{frame.lineno})" for frame in last)
