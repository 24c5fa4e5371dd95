"""Whether a thread gets on with its work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """`silent_s` is for any thread, the rest for the one that works."""

    def __init__(self) -> None:
        self._waits, self._at_s = False, time.monotonic()

    def beat(self) -> None:
        self._at_s = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block in which there is nothing to do."""
        self._waits = True
        try:
            yield
        finally:
            self.beat()
            self._waits = False

    def silent_s(self) -> float:
        """For how many seconds nothing was heard of it; 0 while it waits for something to do."""
        return 0.0 if self._waits else time.monotonic() - self._at_s
