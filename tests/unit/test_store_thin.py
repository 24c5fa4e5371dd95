"""Probes and telemetry come with every look at a device: how the newest are found, and how the oldest go."""

from __future__ import annotations

import pytest

from pimcal.device import Cost
from pimcal.store import Key, Store
from pimcal.store.collect import collect_garbage
from pimcal.store.database import Database
from pimcal.store.journal import Journal, ProbeTotals

from .store_records import MODEL, check_whole, made, ticking

DAY_S = 86_400.0
KEY, OTHER = Key("board-1", MODEL), Key("board-2", MODEL)


class Clock:
    """Says what it was told."""

    def __init__(self) -> None:
        self.now_s = ticking()()

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    """Ten days with a probe and two readings each, and one probe of another board on the first of them."""
    with Store.create(tmp_path / "store", clock=clock) as opened:
        first = opened.add_candidate(made(), "calibrated")
        opened.activate(first.id, "better")
        opened.journal.add_probe(OTHER, statistic=0.3, threshold=1.0, tiles={}, mvms=7)
        for day in range(10):
            opened.journal.add_probe(KEY, statistic=float(day), threshold=1.0, tiles={0: 0.1}, mvms=8 + day)
            opened.journal.add_telemetry("board-1", {"temperature_c": 40.0 + day, "supply_v": 1.0})
            opened.journal.add_run(KEY, outcome="active", reason="better", cost=Cost(mvms=100), generation=first.id)
            opened.journal.add_event("decision", "nothing is due", key=KEY)
            clock.now_s += DAY_S
        yield opened


def thinned(store, days, keep=10):
    return collect_garbage(store, keep, "room", older_than_s=days * DAY_S)


def test_gc_removes_old_probes_and_telemetry_and_nothing_else(store):
    before = store.journal.history(), store.journal.runs(), store.generations()
    found = thinned(store, 4)
    assert (found.probes, found.readings) == (6, 12)
    assert [probe.statistic for probe in store.journal.probes(KEY)] == [6.0, 7.0, 8.0, 9.0]
    assert [one.value for one in store.journal.telemetry("board-1", "temperature_c")] == [46.0, 47.0, 48.0, 49.0]
    assert len(store.journal.telemetry("board-1")) == 8
    events = store.journal.history()
    assert (events[: len(before[0])], store.journal.runs(), store.generations()) == before
    check_whole(store.folder)


def test_the_newest_probe_and_reading_stay_however_old_they_are(store, clock):
    clock.now_s += 1000 * DAY_S
    assert (thinned(store, 4).probes, thinned(store, 0).probes) == (9, 0)
    assert [probe.statistic for probe in store.journal.probes(KEY)] == [9.0]
    assert [probe.statistic for probe in store.journal.probes(OTHER)] == [0.3]
    assert {one.name: one.value for one in store.journal.telemetry("board-1")} == {"temperature_c": 49.0, "supply_v": 1}


def test_history_tells_what_was_removed_and_totals_count_it(store):
    assert store.journal.probe_totals(KEY) == ProbeTotals(10, sum(range(8, 18)))
    thinned(store, 8), thinned(store, 4)
    told = [(event.device, event.model_hash, event.reason, event.details) for event in store.journal.history()[-4:]]
    assert told == [
        (*KEY, "room", {"probes": 2, "mvms": 8 + 9, "before": "2026-01-03T00:00:00+00:00"}),
        (None, None, "room", {"readings": 4, "before": "2026-01-03T00:00:00+00:00"}),
        (*KEY, "room", {"probes": 4, "mvms": 10 + 11 + 12 + 13, "before": "2026-01-07T00:00:00+00:00"}),
        (None, None, "room", {"readings": 8, "before": "2026-01-07T00:00:00+00:00"}),
    ]
    assert {event.kind for event in store.journal.history()[-4:]} == {"thinned"}
    assert store.journal.probe_totals(KEY) == ProbeTotals(10, sum(range(8, 18)))
    assert store.journal.probe_totals(OTHER) == ProbeTotals(1, 7)
    assert store.journal.probe_totals(Key("board-3", MODEL)) == ProbeTotals(0, 0)


def test_where_nothing_is_old_nothing_is_told(store):
    before = store.journal.history()
    assert (thinned(store, 30).probes, collect_garbage(store, 10, "room").readings) == (0, 0)
    assert store.journal.history() == before
    assert len(store.journal.probes(KEY)) == 10


def test_a_thinned_store_stays_as_small_as_it_was(store, clock):
    """SQLite uses again the place of what was removed."""
    sizes = []
    for _ in range(12):
        for number in range(40):
            tiles = {f"layer:{tile}": number / 7 for tile in range(100)}
            store.journal.add_probe(KEY, statistic=0.1, threshold=1.0, tiles=tiles, mvms=8)
            clock.now_s += DAY_S / 40
        thinned(store, 1)
        sizes.append((store.folder / "store.db").stat().st_size)
    assert sizes[-1] == sizes[2]


class Explained(Database):
    """Keeps how SQLite goes about each query."""

    def __init__(self, folder):
        super().__init__(folder, read_only=True, wait_s=0)
        self.steps = []

    def rows(self, query, *parameters):
        self.steps += [row["detail"] for row in super().rows(f"EXPLAIN QUERY PLAN {query}", *parameters)]
        return super().rows(query, *parameters)


@pytest.mark.parametrize(
    ("look", "along"),
    [
        (lambda journal: journal.history(limit=50), None),
        (lambda journal: journal.history(kinds=("decision", "alert"), limit=20), None),
        (lambda journal: journal.history(generation="0" * 12), "events_by_generation"),
        (lambda journal: journal.runs(KEY, limit=200), "runs_by_key"),
        (lambda journal: journal.probes(KEY, limit=1), "probes_by_key"),
        (lambda journal: journal.probe_totals(KEY), "probes_by_key"),
        (lambda journal: journal.telemetry("board-1", "temperature_c", limit=1), "telemetry_by_name"),
    ],
)
def test_the_newest_are_found_from_the_end_and_not_by_sorting_all(store, look, along):
    database = Explained(store.folder)
    look(Journal(database, ticking()))
    assert database.steps
    assert not [step for step in database.steps if "TEMP B-TREE" in step]
    assert along is None or any(f"USING INDEX {along} " in step for step in database.steps)
