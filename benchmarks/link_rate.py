"""Streams of products over a paced line: against the wire's bound, and with byte errors against none."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from link_peers import connected, simulated

from pimcal_serial.driver import Driver

ROWS = 256
BITS_PER_BYTE = 10  # 8N1
WINDOW = {"window": 16, "replay": 32}  # as the reference firmware has them on a computer
RATE_LIMIT = 0.95
ERROR_LIMITS = {1e-5: 0.90, 1e-4: 0.80}


@dataclass(frozen=True)
class Run:
    """One stream of products: how long it took, and what the link did meanwhile."""

    vectors: int
    seconds: float
    sent: int
    received: int
    repeats: int
    exact: bool

    @property
    def vectors_per_s(self) -> float:
        return self.vectors / self.seconds


class Stream:
    """int8 vectors to a board with one matrix, int16 sums back."""

    def __init__(self, driver: Driver, cols: int) -> None:
        generator = np.random.default_rng(0)
        # Weights of -1, 0 and 1, so that every sum fits int16.
        self.weights = generator.integers(-1, 2, (ROWS, cols)).astype(np.int8)
        self.driver, self._generator = driver, generator
        driver.program(0, self.weights)

    def run(self, vectors: int) -> Run:
        inputs = self._generator.integers(-127, 128, (vectors, ROWS)).astype(np.int8)
        counters = self.driver.session.counters
        before, start = replace(counters), time.perf_counter()
        outputs = self.driver.multiply(0, inputs)
        return Run(
            vectors,
            seconds=time.perf_counter() - start,
            sent=counters.bytes_sent - before.bytes_sent,
            received=counters.bytes_received - before.bytes_received,
            repeats=counters.repeats - before.repeats,
            exact=np.array_equal(outputs, inputs.astype(np.int64) @ self.weights.astype(np.int64)),
        )


@contextmanager
def streaming(baud: int, cols: int, **faults: float) -> Iterator[Stream]:
    with simulated({**WINDOW, "faults": faults}, baud) as port, connected(port, baud) as connection:
        yield Stream(Driver(connection.session), cols)


def vectors_for(seconds: float, baud: int, cols: int) -> int:
    """How many vectors keep the slower direction busy for so long."""
    return max(1, round(seconds * baud / BITS_PER_BYTE / max(ROWS, 2 * cols)))


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def rate(bauds: Sequence[int], seconds: float, repeats: int, cols: int) -> dict[str, Any]:
    """Vectors a second over the bound: what the slower direction needs for requests or answers, once each."""
    results = {str(baud): rate_at(baud, seconds, repeats, cols) for baud in bauds}
    return {"matrix": f"{ROWS} x {cols}", "window": WINDOW["window"], "limit": RATE_LIMIT, "baud": results}


def rate_at(baud: int, seconds: float, repeats: int, cols: int) -> dict[str, Any]:
    vectors = vectors_for(seconds, baud, cols)
    with streaming(baud, cols) as stream:
        stream.run(max(1, vectors // 4))
        runs = [stream.run(vectors) for _ in range(repeats)]
    needed = min(max(run.sent, run.received) for run in runs)  # a repetition is not needed
    bound = vectors / (needed * BITS_PER_BYTE / baud)
    shares = [run.vectors_per_s / bound for run in runs]
    return {
        "share_of_bound": spread(shares, 4),
        "vectors_per_s": spread([run.vectors_per_s for run in runs], 1),
        "bound_vectors_per_s": round(bound, 1),
        "payload_share": spread([run.vectors_per_s * max(ROWS, 2 * cols) * BITS_PER_BYTE / baud for run in runs], 4),
        "vectors": vectors,
        "bytes_needed": needed,
        "repeats": sum(run.repeats for run in runs),
        "exact": all(run.exact for run in runs),
        "load_average": round(os.getloadavg()[0], 1),
        "reached": statistics.median(shares) >= RATE_LIMIT,
    }


def errors(bauds: Sequence[int], seconds: float, repeats: int, cols: int) -> dict[str, Any]:
    """Rate with byte errors in both directions over the rate without, taken in turns."""
    return {
        str(share): {"limit": limit} | {str(baud): errors_at(baud, share, seconds, repeats, cols) for baud in bauds}
        for share, limit in ERROR_LIMITS.items()
    }


def errors_at(baud: int, share: float, seconds: float, repeats: int, cols: int) -> dict[str, Any]:
    vectors = vectors_for(seconds, baud, cols)
    pairs = []
    with streaming(baud, cols) as clean:
        clean.run(max(1, vectors // 4))
        for seed in range(repeats):
            with streaming(baud, cols, byte_errors=share, seed=seed) as spoiled:
                spoiled.run(max(1, vectors // 2))  # by which the session learns how bad the line is
                pairs.append((clean.run(vectors), spoiled.run(vectors)))
    ratios = [spoiled.vectors_per_s / clean.vectors_per_s for clean, spoiled in pairs]
    return {
        "of_error_free": spread(ratios),
        "error_free_vectors_per_s": spread([clean.vectors_per_s for clean, _ in pairs], 1),
        "vectors_per_s": spread([spoiled.vectors_per_s for _, spoiled in pairs], 1),
        "vectors": vectors,
        "repeats": [spoiled.repeats for _, spoiled in pairs],
        "exact": all(run.exact for pair in pairs for run in pair),
        "load_average": round(os.getloadavg()[0], 1),
        "reached": statistics.median(ratios) >= ERROR_LIMITS[share],
    }
