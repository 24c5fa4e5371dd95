"""A daemon with `pimcal board simulate` at a cable that is pulled, and a board that is reset, once in each minute.

Both come at random moments, each in one half of the minute, half of the time while the daemon calibrates. The board's
weights fade, and it is looked at every 5 seconds. It has recovered when it is ready and has looked at the board since
that was back, with the generation in force that is active in the store. Nothing is lost where each line of history
stays, each "device lost" has its "device back", and the daemon has counted as many.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from recalibration_daemon import Cable, Contents, Daemon, Peers, check_files, daemon_process, read_whole

from pimcal.store import Store

PEER = "pimsim-pty"
ARRAY = {"noise": "mul", "eta0": 0.1, "drift_exponent": 0.05}
LINK = {"margin_s": 0.1, "connect_s": 1.0, "reconnect_s": 1.0}  # given up soon, so that much is lost
SCHEDULE = {"every": "5s", "when": [{"probe_error": 0.02}]}
HALF_S = 30.0
LATEST_S = 12.0  # in its half
PULLED_S, CUT_S = (2.0, 10.0), (0.05, 3.0)
ASKING_S = 10.0  # between wishes, on average
RESTARTS = "board_restarts"  # that the driver has noticed since the device was opened
PATIENCE_S = 180.0
TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Recovery:
    """From the moment at which the board was back. `looked_s`: until it was ready and looked at the board again."""

    kind: str
    ready_s: float
    looked_s: float
    generation: str


def measure_cables(minutes: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        Peers(Path(folder)).cabled(PEER, array=ARRAY) as cable,
        daemon_process() as daemon,
    ):
        daemon.write(SCHEDULE, device={"port": cable.address, **LINK}, backend="serial", gate={"max_drop": 1.0})
        daemon.start()
        daemon.until(lambda status: status["ready"])
        run = Disturbed(daemon, cable, draw)
        recoveries = run.minutes(minutes)
        status = daemon.until(lambda status: status["ready"] and status["state"] == "waiting")
        assert daemon.stopped().code == 0
        check_files(daemon.store)
        found = told(recoveries) | run.asked | final(daemon.store, status, run.contents)
        return found | {"reached": len(recoveries) == 2 * minutes and found["nothing_lost"]}


class Disturbed:
    """A daemon whose board goes away; `asked` counts what it was asked for, `contents` is what the store held last."""

    def __init__(self, daemon: Daemon, cable: Cable, draw: random.Random) -> None:
        self._daemon, self._cable, self._draw = daemon, cable, draw
        self.asked: Counter[str] = Counter()
        self.contents = Contents()

    def minutes(self, count: int) -> list[Recovery]:
        """Those that came; a board that was not found again ends it."""
        start_s, found = time.monotonic(), list[Recovery]()
        kinds = [kind for _ in range(count) for kind in self._draw.sample(("pull", "reset"), 2)]
        for number, kind in enumerate(kinds):
            self._use_until(start_s + number * HALF_S + self._draw.uniform(1, LATEST_S))
            back_s = self._pull() if kind == "pull" else self._reset()
            try:
                found.append(self._recovered(kind, back_s))
            except AssertionError as error:
                print(f"not recovered from {kind} {number}: {error}", file=sys.stderr)
                return found
            self._look_into_store()
            print(found[-1], file=sys.stderr, flush=True)
        self._use_until(start_s + len(kinds) * HALF_S)
        return found

    # what happens to it

    def _use_until(self, end_s: float) -> None:
        """Ask for a look or a calibration now and then."""
        while time.monotonic() < end_s:
            if self._draw.random() < TICK_S / ASKING_S:
                self._ask(calibrate=self._draw.random() < 0.5)
            time.sleep(TICK_S)

    def _ask(self, calibrate: bool) -> None:
        self._daemon.ask(do="run-now", calibrate=calibrate)
        self.asked["calibrations_asked_for" if calibrate else "looks_asked_for"] += 1

    def _pull(self) -> float:
        """Returns when the plug will be in again, as do the times of `time.monotonic`."""
        self._perhaps_calibrate()
        pulled_s = self._draw.uniform(*PULLED_S)
        self._cable.unplug(pulled_s)
        return time.monotonic() + pulled_s

    def _reset(self) -> float:
        """Returns when the board has started again."""
        self._perhaps_calibrate()
        self._cable.cut_power(self._draw.uniform(*CUT_S))
        return time.monotonic()

    def _perhaps_calibrate(self) -> None:
        if self._draw.random() < 0.5:
            self._ask(calibrate=True)
            time.sleep(self._draw.uniform(0, 0.5))

    # what comes of it

    def _recovered(self, kind: str, back_s: float) -> Recovery:
        self._use_until(back_s)
        looks = self._until(lambda status: True)["counters"]["looks"]
        self._until(lambda status: status["ready"])
        ready_s = time.monotonic() - back_s
        status = self._until(lambda status: status["ready"] and status["counters"]["looks"] > looks)
        looked_s = time.monotonic() - back_s
        self._until(lambda status: status["generation"] == read_whole(self._daemon.store).active)
        return Recovery(kind, round(ready_s, 2), round(looked_s, 2), status["generation"])

    def _until(self, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end_s = time.monotonic() + PATIENCE_S
        while True:
            status: dict[str, Any] = self._daemon.ask(do="status")
            if reached(status):
                return status
            assert time.monotonic() < end_s, status
            time.sleep(TICK_S)

    def _look_into_store(self) -> None:
        now = read_whole(self._daemon.store)
        assert now.follows(self.contents), "the past has changed"
        self.contents = now


def told(recoveries: list[Recovery]) -> dict[str, Any]:
    kinds = Counter(each.kind for each in recoveries)
    return {
        "pulls": kinds["pull"],
        "resets": kinds["reset"],
        "recoveries": len(recoveries),
        "longest_to_ready_s": max((each.ready_s for each in recoveries), default=None),
        "longest_to_look_s": max((each.looked_s for each in recoveries), default=None),
        "generations_in_force": len({each.generation for each in recoveries}),
        "each": [asdict(each) for each in recoveries],
    }


def final(folder: Path, status: dict[str, Any], before: Contents) -> dict[str, Any]:
    """What the store says in the end, against what the daemon told last."""
    now = read_whole(folder)
    alerts = [event.details["kind"] for event in now.events if event.kind == "alert"]
    times = [alert for alert in alerts if alert in ("device lost", "device back")]
    lost = times.count("device lost")
    whole = now.follows(before) and times == ["device lost", "device back"] * lost
    with Store.open(folder, read_only=True) as store:
        runs = Counter(run.outcome for run in store.journal.runs(limit=None))
        restarts = [0.0, *(one.value for one in store.journal.telemetry(status["device"], RESTARTS, limit=None))]
    return {
        "device_lost": lost,
        "device_back": times.count("device back"),
        "other_alerts": dict(Counter(alerts) - Counter(times)),
        "counters": status["counters"],
        "board_restarts": round(sum(max(0.0, after - before) for before, after in pairwise(restarts))),
        "outcomes": dict(runs),
        "generations": len(now.generations),
        "events": len(now.events),
        "nothing_lost": whole and status["counters"]["lost"] == lost and now.active == status["generation"],
        "problems_at_end": status["problems"],
    }
