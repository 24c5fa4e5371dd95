"""Memory for the bodies of requests: there are several copies of each, so they have a limit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pimcal.errors import DeviceUnavailableError


class Room:
    """So many bytes at a time. Used in one thread."""

    def __init__(self, size: int) -> None:
        self._left = size

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that takes so many bytes more, until the end of the block.

        It raises DeviceUnavailableError where others have them. Only what has come is to be taken: a length that is
        claimed holds nothing.
        """
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if count > self._left:
                raise DeviceUnavailableError("the arrays of other requests fill the memory for them; try again later")
            self._left -= count
            taken += count

        try:
            yield take
        finally:
            self._left += taken
