-- A store as schema version 1 had it. Never changes: migrations start from here.

CREATE TABLE generations (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    device TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    profile_hash TEXT NOT NULL,
    record_id TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    method TEXT NOT NULL,
    parent TEXT REFERENCES generations (id),
    state TEXT NOT NULL CHECK (state IN ('candidate', 'active', 'retired', 'rejected')),
    reason TEXT NOT NULL,
    metric TEXT,
    metric_before REAL,
    metric_after REAL,
    created_at REAL NOT NULL,
    activated_at REAL,
    retired_at REAL,
    collected_at REAL,
    CHECK (collected_at IS NULL OR state IN ('retired', 'rejected'))
);

CREATE UNIQUE INDEX one_active ON generations (device, model_hash) WHERE state = 'active';

CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    device TEXT,
    model_hash TEXT,
    generation TEXT REFERENCES generations (id),
    reason TEXT NOT NULL,
    details TEXT NOT NULL
);

CREATE INDEX events_by_generation ON events (generation);

CREATE INDEX events_by_key ON events (device, model_hash, kind);

CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;

CREATE TRIGGER events_are_fixed BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;

CREATE TRIGGER events_are_not_replaced BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;

CREATE TABLE runs (
    seq INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    device TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    generation TEXT REFERENCES generations (id),
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    images INTEGER NOT NULL,
    mvms INTEGER NOT NULL,
    programmed_cells INTEGER NOT NULL,
    link_bytes INTEGER NOT NULL,
    seconds REAL NOT NULL
);

CREATE TABLE probes (
    seq INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    device TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    statistic REAL,
    threshold REAL NOT NULL,
    mvms INTEGER NOT NULL,
    tiles TEXT NOT NULL
);

PRAGMA application_id = 1885957475;
PRAGMA user_version = 1;
