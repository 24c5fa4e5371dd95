"""What a store remembers beside generations: history, runs of calibrations, probes, telemetry."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from pimcal.store.clock import Clock
from pimcal.store.database import Database
from pimcal.store.events import COLUMNS as EVENT_COLUMNS
from pimcal.store.events import THINNED, Event, json_of, write_event
from pimcal.store.generations import Key
from pimcal.stored import Count, Finite, Number, Seconds, Text, checked

if TYPE_CHECKING:
    from pimcal.device import Cost

NEWEST = 1_000
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A calibration: what came of it (`outcome`), why, and what it cost the device."""

    at: Seconds
    kind: Text
    device: Text
    model_hash: Text
    generation: Text | None
    outcome: Text
    reason: Text
    images: Count
    mvms: Count
    programmed_cells: Count
    link_bytes: Count
    seconds: Finite

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        return checked(cls, dict(row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A look at the device: its statistic against the threshold, in all and by tile; NaN where it could not be told."""

    at: Seconds
    device: Text
    model_hash: Text
    statistic: Number
    threshold: Number
    mvms: Count
    tiles: dict[Text, Number]

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        return checked(cls, {**dict(row), "statistic": _number(row["statistic"]), "tiles": _tiles(row["tiles"])})


class ProbeTotals(NamedTuple):
    """How many probes, and what they took of the device."""

    probes: Count
    mvms: Count

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        return checked(cls, {"probes": row[0], "mvms": row[1]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One value of a device's telemetry, its unit in its name."""

    at: Seconds
    device: Text
    name: Text
    value: Number

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        return checked(cls, {**dict(row), "value": _number(row["value"])})


class Journal:
    """Adds lines to a store, each at the clock's time, and reads them back: the newest `limit`, oldest first."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def add_event(
        self,
        kind: str,
        reason: str,
        *,
        key: Key | None = None,
        generation: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a line to history."""
        with self._database.transaction() as connection:
            write_event(connection, self._clock(), kind, reason, key=key, generation=generation, details=details)

    def history(
        self,
        key: Key | None = None,
        *,
        device: str | None = None,
        generation: str | None = None,
        kinds: Collection[str] = (),
        limit: int | None = NEWEST,
    ) -> list[Event]:
        """What happened: to one device, or device and model, to one generation, only of some kinds, where given."""
        wanted = {"device": device, "generation": generation} | _of_key(key)
        return self._newest(Event.of, "events", EVENT_COLUMNS, wanted, limit, kinds)

    def add_run(
        self,
        key: Key,
        *,
        outcome: str,
        reason: str,
        cost: Cost,
        images: int = 0,
        kind: str = "calibration",
        generation: str | None = None,
    ) -> None:
        """Remember what a calibration cost and came to."""
        run = Run(
            at=self._clock(), kind=kind, device=key.device, model_hash=key.model_hash, generation=generation,
            outcome=outcome, reason=reason, images=images, **asdict(cost),
        )  # fmt: skip
        self._insert("runs", [asdict(run)])

    def runs(self, key: Key | None = None, *, limit: int | None = NEWEST) -> list[Run]:
        columns = ", ".join(Run.__dataclass_fields__)
        return self._newest(Run.of, "runs", columns, _of_key(key), limit)

    def add_probe(
        self, key: Key, *, statistic: float, threshold: float, tiles: Mapping[Any, float], mvms: int = 0
    ) -> None:
        """Remember what a probe found; `tiles` has the statistic by tile."""
        values = {str(tile): _finite(value) for tile, value in tiles.items()}
        row = {"at": self._clock(), **key._asdict(), "statistic": statistic, "threshold": threshold, "mvms": mvms}
        self._insert("probes", [{**row, "tiles": json.dumps(values)}])

    def probes(self, key: Key | None = None, *, limit: int | None = NEWEST) -> list[Probe]:
        columns = ", ".join(Probe.__dataclass_fields__)
        return self._newest(Probe.of, "probes", columns, _of_key(key), limit)

    def probe_totals(self, key: Key) -> ProbeTotals:
        """All probes that there ever were, also those that gc has removed."""
        query = f"""
            SELECT count(*), coalesce(sum(mvms), 0) FROM probes WHERE device = ?1 AND model_hash = ?2
            UNION ALL
            SELECT json_extract(details, '$.probes'), json_extract(details, '$.mvms') FROM events
            WHERE device = ?1 AND model_hash = ?2 AND kind = '{THINNED}'
        """
        found = self._database.read(ProbeTotals.of, query, *key)
        return ProbeTotals(sum(each.probes for each in found), sum(each.mvms for each in found))

    def add_telemetry(self, device: str, readings: Mapping[str, float]) -> None:
        """Remember a device's readings by name and unit."""
        at = self._clock()
        self._insert("telemetry", [{"at": at, "device": device, "name": n, "value": v} for n, v in readings.items()])

    def telemetry(self, device: str, name: str | None = None, *, limit: int | None = NEWEST) -> list[Reading]:
        wanted = {"device": device, "name": name}
        return self._newest(Reading.of, "telemetry", "at, device, name, value", wanted, limit)

    def _insert(self, table: str, rows: list[dict[str, Any]]) -> None:
        with self._database.transaction() as connection:
            for row in rows:
                places = ", ".join("?" * len(row))
                connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", (*row.values(),))

    def _newest(
        self,
        make: Callable[[sqlite3.Row], T],
        table: str,
        columns: str,
        wanted: Mapping[str, str | None],
        limit: int | None,
        kinds: Collection[str] = (),
    ) -> list[T]:
        given = {name: value for name, value in wanted.items() if value is not None}
        conditions = [f"{name} = ?" for name in given]
        if kinds:
            conditions.append(f"kind IN ({', '.join('?' * len(kinds))})")
        where = " AND ".join(conditions) or "TRUE"
        query = f"SELECT {columns} FROM {table} WHERE {where} ORDER BY seq DESC LIMIT ?"
        return self._database.read(make, query, *given.values(), *kinds, -1 if limit is None else limit)[::-1]


def _of_key(key: Key | None) -> dict[str, str | None]:
    return {} if key is None else key._asdict()


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def _number(value: object) -> object:
    """SQLite stores NaN as NULL."""
    return math.nan if value is None else value


def _tiles(text: object) -> object:
    found = json_of(text)
    return {tile: _number(value) for tile, value in found.items()} if isinstance(found, dict) else found
