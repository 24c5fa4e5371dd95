"""What systemd is told: sd_notify(3), a line each in a datagram to the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress

PATIENCE_S = 1.0  # for a manager that has not read what was sent before


class Notifier:
    """Does nothing where no service manager listens."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Takes NOTIFY_SOCKET from `environment`, and how often the watchdog wants to be fed."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        microseconds = environment.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
        self._status, self._fed_s = "", -float("inf")

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        """`ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def fed(self) -> None:
        """The watchdog may wait another interval; more often than it needs is not sent."""
        now_s = time.monotonic()
        if self.watchdog_s is not None and now_s - self._fed_s >= self.watchdog_s / 5:
            self._fed_s = now_s
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """A line for `systemctl status`; the same one again is not sent."""
        line = " ".join(text.split())
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(PATIENCE_S)
            sender.sendto(message.encode(), address)
