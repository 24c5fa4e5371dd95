"""What `/metrics` tells: the daemon's status, the store's history, the requests that were served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

from pimcal.daemon.journal import RUN_KIND
from pimcal.daemon.status import State, Status
from pimcal.errors import StorageError
from pimcal.recalibration.outcome import Outcome
from pimcal.serving.exposition import Histogram, Kind, Labels, family
from pimcal.store import Key, Store

# Telemetry that has a metric of its own: what it is called there, its kind, what it is.
READINGS: dict[str, tuple[str, Kind, str]] = {
    "temperature_c": ("pimcal_temperature_celsius", "gauge", "Temperature of the device, at the last look."),
    "supply_v": ("pimcal_supply_volts", "gauge", "Supply voltage of the device, at the last look."),
    "link_sent_bytes": ("pimcal_link_sent_bytes_total", "counter", "Bytes sent to the device."),
    "link_received_bytes": ("pimcal_link_received_bytes_total", "counter", "Bytes received from the device."),
    "link_repeats": ("pimcal_link_repeats_total", "counter", "Frames that had to be sent again."),
    "link_frames_dropped": ("pimcal_link_dropped_frames_total", "counter", "Frames that came damaged."),
    "link_reopened": ("pimcal_link_reopenings_total", "counter", "Times that the link was opened again."),
    "board_restarts": ("pimcal_board_restarts_total", "counter", "Restarts of the board."),
}
SERVED = 200
RECALIBRATED: tuple[Outcome, ...] = ("activated", "kept", "failed")  # outcomes of runs that were more than a look
Line = tuple[str, Kind, str, list[tuple[Labels, float]]]


@dataclass(slots=True)
class Requests:
    """Requests for inference, by the status code of their answers, and how long those took that were served."""

    answers: Counter[int] = field(default_factory=Counter)
    seconds: Histogram = field(
        default_factory=lambda: Histogram("pimcal_infer_seconds", "From a request that was served to its answer.")
    )

    def answered(self, code: int, seconds: float) -> None:
        self.answers[code] += 1
        if code == SERVED:
            self.seconds.observe(seconds)


class Measured:
    """`text` may be called from any thread, one at a time."""

    def __init__(self, status: Callable[[], Status], open_store: Callable[[], Store], now: Callable[[], float]) -> None:
        """`open_store()` gives a store to read; `now()` is Unix time by the daemon's clock."""
        self._status, self._open_store, self._now = status, open_store, now
        self._upkeep = 0

    def text(self, requests: Requests, infer_mvms: int, silent_s: float) -> str:
        """All metrics, in the exposition format."""
        status = self._status()
        try:
            stored, readable = self._of_store(status), True
        except StorageError:
            stored, readable = [], False
        told = [*_of_status(status, silent_s), *self._mvms(status, infer_mvms), *_of_telemetry(status.telemetry)]
        told += [*stored, _one("pimcal_store_readable", "Whether the store can be read.", readable)]
        by_code: list[tuple[Labels, float]] = [({"code": str(code)}, n) for code, n in sorted(requests.answers.items())]
        told.append(("pimcal_infer_requests_total", "counter", "Requests for inference, by status code.", by_code))
        lines = [line for each in told for line in family(*each)]
        return "\n".join([*lines, *requests.seconds.lines()]) + "\n"

    def _mvms(self, status: Status, infer: int) -> list[Line]:
        self._upkeep = max(self._upkeep, status.counters.mvms - infer)  # the status is older: a counter never falls
        about = "Matrix-vector products since the daemon started: for requests, and for keeping the device right."
        values: list[tuple[Labels, float]] = [({"purpose": "infer"}, infer), ({"purpose": "upkeep"}, self._upkeep)]
        return [("pimcal_mvms_total", "counter", about, values)]

    def _of_store(self, status: Status) -> list[Line]:
        if status.device is None or status.model_hash is None:
            return []
        with self._open_store() as store:
            key = Key(status.device, status.model_hash)
            return [*self._generation(store, key), *_probes(store, key), _recalibrations(store, key)]

    def _generation(self, store: Store, key: Key) -> list[Line]:
        active = store.active(key)
        if active is None:
            return []
        labels = {"generation": active.id, "record": active.record_id, "method": active.method}
        age_s = max(0.0, self._now() - active.created_at)
        return [
            ("pimcal_generation_info", "gauge", "The generation that is active.", [(labels, 1)]),
            _one("pimcal_generation_age_seconds", "Since the active generation was calibrated.", age_s),
        ]


def _of_status(status: Status, silent_s: float) -> list[Line]:
    states: list[tuple[Labels, float]] = [({"state": state}, state == status.state) for state in get_args(State)]
    problems: list[tuple[Labels, float]] = [({"kind": kind}, 1) for kind in sorted(status.problems)]
    counters = status.counters
    measured: list[tuple[Labels, float]] = []
    if status.metric_name is not None and status.metric_value is not None:
        measured.append(({"metric": status.metric_name}, status.metric_value))
    return [
        ("pimcal_state", "gauge", "1 for what the daemon does now.", states),
        _one("pimcal_ready", "Whether the device is open, with a calibration in force.", status.ready),
        _one("pimcal_device_lost", "Whether the device is waited for.", status.state == "lost"),
        _one("pimcal_worker_silent_seconds", "Since the thread that owns the device made progress.", silent_s),
        (
            "pimcal_metric_value",
            "gauge",
            "What is in force reached on the held-out images, as last measured.",
            measured,
        ),
        ("pimcal_problem", "gauge", "What somebody should look at now, by kind.", problems),
        _count("pimcal_device_losses_total", "Times that the device went away.", counters.lost),
        _count("pimcal_looks_total", "Looks at the device.", counters.looks),
    ]


def _probes(store: Store, key: Key) -> list[Line]:
    totals = store.journal.probe_totals(key)
    found = [
        _count("pimcal_probes_total", "Probes in the store's history.", totals.probes),
        _count("pimcal_probe_mvms_total", "What they took of the device's matrix-vector products.", totals.mvms),
    ]
    newest = store.journal.probes(key, limit=1)
    about = "Statistic of the newest probe; from 1 on it is drift."
    return [*found, *(_one("pimcal_probe_statistic", about, probe.statistic) for probe in newest)]


def _recalibrations(store: Store, key: Key) -> Line:
    query = "SELECT outcome, COUNT(*) FROM runs WHERE kind = ? AND device = ? AND model_hash = ? GROUP BY outcome"
    counts = {row[0]: row[1] for row in store.database.rows(query, RUN_KIND, *key)}
    about = "Recalibrations in the store's history, by outcome."
    values: list[tuple[Labels, float]] = [({"outcome": each}, counts.get(each, 0)) for each in RECALIBRATED]
    return "pimcal_recalibrations_total", "counter", about, values


def _of_telemetry(telemetry: dict[str, float]) -> list[Line]:
    named: list[Line] = [(*READINGS[name], [({}, value)]) for name, value in telemetry.items() if name in READINGS]
    others: list[tuple[Labels, float]] = [({"name": k}, v) for k, v in telemetry.items() if k not in READINGS]
    return [*named, ("pimcal_reading", "gauge", "Other telemetry, its unit in its name.", others)]


def _one(name: str, about: str, value: float) -> Line:
    return name, "gauge", about, [({}, float(value))]


def _count(name: str, about: str, value: float) -> Line:
    return name, "counter", about, [({}, value)]
