"""The daemon's main thread: signals, the socket, the watchdog. The device is the worker's."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pimcal.daemon.control import Control
from pimcal.daemon.lasting import is_lasting
from pimcal.daemon.notify import Notifier
from pimcal.daemon.overview import Overview
from pimcal.daemon.requests import check_request
from pimcal.daemon.subject import Subject
from pimcal.errors import ConfigError, PimcalError, UsageError
from pimcal.profile.duration import parse_duration

logger = logging.getLogger(__name__)

INTERRUPTED = 130
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TICK_S = 5.0
LONGEST_RELEASE_S = 30 * 86_400.0


class Bell:
    """Wakes the main thread: rung by signals and by the worker."""

    def __init__(self) -> None:
        self.waiting, self._ringing = socket.socketpair()
        for end in (self.waiting, self._ringing):
            end.setblocking(False)

    @contextmanager
    def for_signals(self) -> Iterator[None]:
        """Within the block a signal is a byte with its number."""
        former = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        before = signal.set_wakeup_fd(self._ringing.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in former.items():
                signal.signal(number, handler)

    def ring(self) -> None:
        with suppress(OSError):  # it is ringing already, or there is nobody any more
            self._ringing.send(b"\0")

    def heard(self) -> bytes:
        """What rang, a byte each; 0 for the worker."""
        try:
            return self.waiting.recv(4096)
        except BlockingIOError:
            return b""


class Service:
    """`run` returns the exit code; raises what ended the worker, a ConfigError where it would be so the next time."""

    def __init__(
        self,
        overview: Overview,
        bell: Bell,
        path: Path,
        notifier: Notifier,
        reload: Callable[[Subject], Subject],
        subject: Subject,
        stopping: Callable[[Callable[[], None]], None] = lambda stop: stop(),
    ) -> None:
        """`reload(subject)` reads the configuration anew; raises PimcalError for a broken one or other hardware.

        `stopping(stop)` is called when the daemon is to end, and calls `stop()` as soon as the worker may be stopped.
        """
        self._overview, self._worker, self._bell, self._notifier = overview, overview.worker, bell, notifier
        self._reload, self._subject, self._before_stop = reload, subject, stopping
        self._selector = selectors.DefaultSelector()
        self._control = Control(path, self._selector, self._answer)
        self._selector.register(bell.waiting, selectors.EVENT_READ, self._hear)
        self._ready = self._stopping = False
        self._code = 0

    def run(self) -> int:
        try:
            self._worker.start()
            while not self._worker.ended:
                for key, _ in self._selector.select(self._tick_s):
                    key.data()
                self._control.drop_slow()
                self._tell()
            self._worker.join()
        finally:
            self._control.close()
            self._selector.close()
        failure = self._worker.failure
        if failure is not None and is_lasting(failure):
            raise ConfigError(str(failure)) from failure
        if failure is not None:
            raise failure
        logger.info("stopped")
        return self._code

    @property
    def _tick_s(self) -> float:
        return min(TICK_S, (self._notifier.watchdog_s or TICK_S) / 4)

    def _tell(self) -> None:
        """What the service manager wants to know; the watchdog is fed only while the worker makes progress."""
        status = self._overview.status
        if not self._ready and status.state not in ("starting", "stopped"):
            self._ready = True
            logger.info("device %s is open", status.device)
            self._notifier.ready()
        self._overview.tell()
        self._notifier.status(status.line())
        if self._worker.silent_s() < (self._notifier.watchdog_s or 0.0) / 2:
            self._notifier.fed()

    # signals

    def _hear(self) -> None:
        for number in self._bell.heard():
            if number == signal.SIGHUP:
                self._load_again()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._stop(number)

    def _stop(self, number: int) -> None:
        if self._stopping:  # in a hurry: the store is whole at every moment
            logger.warning("stopped at once, at the second signal")
            self._control.close()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._code = INTERRUPTED if number == signal.SIGINT else 0
        self._end(signal.Signals(number).name)

    def _end(self, why: str) -> None:
        logger.info("stopping: %s", why)
        self._stopping = True
        self._notifier.stopping()
        self._before_stop(self._worker.stop)

    def _load_again(self) -> None:
        told = self._ready and not self._stopping  # READY=1 ends a reload, and must not end the start
        if told:
            self._notifier.reloading()
        try:
            self._subject = self._reload(self._subject)
        except PimcalError as error:
            self._keep_former(str(error))
        except Exception as error:  # a mistake in reading does not end the daemon
            logger.exception("the daemon's own error, when it read the configuration")
            self._keep_former(f"the daemon's own error, see its log: {type(error).__name__}: {error}")
        else:
            self._overview.solved("configuration")
            self._worker.reload(self._subject)
            logger.info("configuration reloaded")
        if told:
            self._notifier.ready()

    def _keep_former(self, why: str) -> None:
        self._overview.problem("configuration", f"it was not reloaded, the former one holds: {why}")

    # the socket

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        asked = request.get("do")
        check_request(asked, {name: value for name, value in request.items() if name != "do"})
        if asked == "status":
            return self._status()
        do = self._wanted(request)
        logger.info("asked for: %s", asked)
        do()
        return {"done": asked}

    def _wanted(self, request: dict[str, Any]) -> Callable[[], None]:
        """What a request that may be granted is to do. Raises UsageError."""
        worker = self._worker
        match request["do"]:
            case "run-now":
                return partial(worker.run_now, "calibrate" if request.get("calibrate") else "look")
            case "pause":
                return worker.pause
            case "resume":
                return worker.resume
            case "release":
                return partial(worker.release, _seconds(request["for"]))
            case _:
                return partial(self._end, "asked for")

    def _status(self) -> dict[str, Any]:
        found = self._overview.status.as_dict()
        return {**found, "process": os.getpid(), "profile": self._subject.profile.name}


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text).total_seconds()
    except ValueError as error:
        raise UsageError(f"release: {error}") from error
    if seconds <= 0:
        raise UsageError("release: the duration must be above zero")
    if seconds > LONGEST_RELEASE_S:
        raise UsageError("release: 30d is the longest; to have the device for longer, `pimcal daemon stop`")
    return seconds
