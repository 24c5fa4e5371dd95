"""A line of a certain rate, 8N1: ten bits a byte."""

from __future__ import annotations

import math

_BITS = 10


class PacedLine:
    """One direction of a line: bytes come out when they would have arrived."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._byte_s = 0.0
        self._busy_until_s = -math.inf  # when the last byte that came out had arrived

    def __len__(self) -> int:
        return len(self._bytes)

    def put(self, data: bytes, now_s: float, baud: int | None) -> None:
        """Send `data`, without pace where `baud` is None. Bytes under way keep the pace that they began with."""
        if not self._bytes:
            self._byte_s = _BITS / baud if baud else 0.0
            self._busy_until_s = max(self._busy_until_s, now_s)
        self._bytes += data

    def take(self, now_s: float) -> bytes:
        """What has arrived by now."""
        if not self._byte_s:
            arrived = len(self._bytes)
        else:
            arrived = min(len(self._bytes), int((now_s - self._busy_until_s) / self._byte_s + 1e-3))
        data = bytes(self._bytes[:arrived])
        del self._bytes[:arrived]
        self._busy_until_s += arrived * self._byte_s
        return data

    def due_s(self) -> float:
        """When the next frame, or all there is, will have arrived; infinite for an idle line."""
        if not self._bytes:
            return math.inf
        end = self._bytes.find(0) + 1 or len(self._bytes)
        return self._busy_until_s + end * self._byte_s

    def clear(self) -> None:
        """Forget what is under way."""
        self._bytes.clear()
