"""What others want of the thread that owns the device, left where it finds it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pimcal.daemon.clock import Clock
from pimcal.daemon.keeper import Asked
from pimcal.daemon.subject import Subject

LONGEST_WAIT_S = 3600.0  # the operating system's seconds: for much longer than that no lock can be waited for


class Wishes:
    """For any thread; `take_...`, `end_release` and `wait` are for the one that fulfils them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._news = False  # since the last wait
        self._released_until_s: float | None = None  # monotonic seconds of the daemon's clock
        self._asked: Asked | None = None
        self._subject: Subject | None = None
        self.stopped = self.paused = False

    # wishing

    def stop(self) -> None:
        with self._told():
            self.stopped = True

    def pause(self) -> None:
        with self._told():
            self.paused = True

    def resume(self) -> None:
        with self._told():
            self.paused, self._released_until_s = False, None

    def run_now(self, asked: Asked) -> None:
        with self._told():
            self.paused, self._released_until_s, self._asked = False, None, asked

    def release(self, seconds: float) -> None:
        with self._told():
            self._released_until_s = self._clock.now().monotonic_s + seconds

    def use(self, subject: Subject) -> None:
        with self._told():
            self._subject = subject

    def wake(self) -> None:
        """Something else is to be looked at."""
        with self._told():
            pass

    @contextmanager
    def _told(self) -> Iterator[None]:
        with self._changed:
            yield
            self._news = True
            self._changed.notify_all()

    # fulfilling

    @property
    def away(self) -> bool:
        """Whether the device is to be let go of, and what runs on it given up."""
        return self.stopped or self._released_until_s is not None

    @property
    def release_left_s(self) -> float | None:
        """For how long others are to have the device, down to 0; None where it is not released."""
        until_s = self._released_until_s
        return None if until_s is None else max(0.0, until_s - self._clock.now().monotonic_s)

    def end_release(self) -> None:
        """Take the device back, where the time is over."""
        with self._changed:
            if self.release_left_s == 0.0:
                self._released_until_s = None

    def take_asked(self) -> Asked | None:
        """What is to be run now; the next call gives None."""
        with self._changed:
            asked, self._asked = self._asked, None
        return asked

    def take_subject(self) -> Subject | None:
        """A configuration that came since the last call."""
        with self._changed:
            subject, self._subject = self._subject, None
        return subject

    def wait(self, seconds: float) -> None:
        """So many of the clock's seconds, or until there are news, or less: who waits looks again in any case."""
        with self._changed:
            if seconds > 0 and not self._news:
                self._changed.wait(min(self._clock.lasts_s(seconds), LONGEST_WAIT_S))
            self._news = False
