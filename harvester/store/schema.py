"""The index's tables. No migrations: an index of another version is rebuilt from the logs."""

from __future__ import annotations

VERSION = "9"

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE positions (
    log TEXT PRIMARY KEY,            -- ledger name, or path relative to the spool
    offset INTEGER NOT NULL,         -- behind the last applied record
    max_seq INTEGER NOT NULL,
    missing TEXT NOT NULL            -- JSON [[from, to], ...] of sequence numbers not seen
) WITHOUT ROWID;

CREATE TABLE payloads (payload_id TEXT PRIMARY KEY, spec TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE asks (key TEXT PRIMARY KEY, points INTEGER NOT NULL, answered INTEGER NOT NULL);
CREATE INDEX open_asks ON asks (answered) WHERE answered = 0;

CREATE TABLE leases (
    lease TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    point TEXT NOT NULL,
    parameters TEXT NOT NULL,        -- JSON
    payload_id TEXT NOT NULL,
    segment TEXT,
    priority INTEGER NOT NULL,
    attempts_before INTEGER NOT NULL,
    expires_s REAL NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0, -- the service gave the point to others
    stop TEXT,                       -- pruned | cancelled, as the service said
    settled_by TEXT,                 -- the attempt that is its outcome
    closed INTEGER NOT NULL DEFAULT 0 -- the service has the outcome
) WITHOUT ROWID;
CREATE INDEX open_leases ON leases (lease) WHERE closed = 0;

CREATE TABLE attempts (
    attempt TEXT PRIMARY KEY,
    lease TEXT NOT NULL,
    task TEXT NOT NULL,
    point TEXT NOT NULL,
    number INTEGER NOT NULL,         -- of the point
    state TEXT NOT NULL,
    since REAL NOT NULL,             -- when it entered the state
    blame TEXT,
    reason TEXT,
    tag TEXT,
    node TEXT,
    loss REAL,
    started_at REAL,
    ended_at REAL,
    resumed_from TEXT,
    checkpoint TEXT,                 -- JSON FileRef it starts from
    saved TEXT,                      -- JSON FileRef of its newest own checkpoint
    progress INTEGER NOT NULL DEFAULT 0,
    duration_s REAL NOT NULL DEFAULT 0,
    outcome TEXT,                    -- JSON AttemptEnded until delivered
    last_step INTEGER,
    last_loss REAL,
    returned_by TEXT,                -- tags of allocations that handed the order back
    unwanted TEXT,                   -- pruned | cancelled: is to be stopped
    stop_ordered INTEGER NOT NULL DEFAULT 0,
    judged INTEGER NOT NULL DEFAULT 0,
    uploads INTEGER NOT NULL DEFAULT 0, -- files to bring to the service before delivery
    delivered INTEGER NOT NULL DEFAULT 0, -- 0 no, 1 intended, 2 receipt
    told INTEGER NOT NULL DEFAULT 0,  -- was delivered at least once
    verdict TEXT,
    proof TEXT                       -- JSON RecordRef of the event that brought the outcome
) WITHOUT ROWID;
CREATE INDEX live_attempts ON attempts (state, tag)
    WHERE state IN ('leased', 'ordered', 'running');
CREATE INDEX attempts_of_lease ON attempts (lease);
CREATE INDEX attempts_of_point ON attempts (task, point, number);
CREATE INDEX started_in ON attempts (tag) WHERE started_at IS NOT NULL;
CREATE INDEX successes ON attempts (ended_at) WHERE state = 'succeeded';
CREATE INDEX node_failures ON attempts (ended_at)
    WHERE state = 'failed' AND blame IN ('point', 'node');
CREATE INDEX site_faults ON attempts (task, ended_at)
    WHERE state IN ('failed', 'lost') AND blame = 'site';
CREATE INDEX sound_runs ON attempts (task, ended_at) WHERE state IN ('succeeded', 'pruned',
    'timed_out') OR (state = 'failed' AND blame = 'point');
CREATE INDEX unjudged ON attempts (attempt)
    WHERE judged = 0 AND state NOT IN ('leased', 'ordered', 'running');
CREATE INDEX undelivered ON attempts (attempt) WHERE judged = 1 AND delivered < 2;
CREATE INDEX unwanted ON attempts (attempt) WHERE unwanted IS NOT NULL AND stop_ordered = 0;

CREATE TABLE tallies (             -- attempts counted, so that a view need not
    task TEXT NOT NULL, state TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (task, state)
) WITHOUT ROWID;

CREATE TABLE spent (               -- run time of attempts that have ended, summed likewise
    task TEXT NOT NULL, payload_id TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (task, payload_id)
) WITHOUT ROWID;

CREATE TABLE reports (
    attempt TEXT NOT NULL, step INTEGER NOT NULL, fields TEXT NOT NULL,
    PRIMARY KEY (attempt, step)
) WITHOUT ROWID;

CREATE TABLE allocations (
    tag TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    since REAL NOT NULL,
    queue TEXT NOT NULL,
    nodes INTEGER NOT NULL,
    walltime_s REAL NOT NULL,
    gpus_per_node INTEGER NOT NULL,
    why TEXT NOT NULL,
    job_id TEXT,
    planned_at REAL NOT NULL,
    submitted_at REAL,
    started_at REAL,
    ended_at REAL,
    reason TEXT,
    witness TEXT,
    runner TEXT NOT NULL DEFAULT '', -- '' | up | draining | ended, by its own word
    epoch_seen INTEGER NOT NULL DEFAULT 0,
    remaining_s REAL,
    heartbeat_at REAL,
    slots REAL NOT NULL DEFAULT 0,
    slots_busy REAL NOT NULL DEFAULT 0,
    slot_seconds REAL NOT NULL DEFAULT 0,
    busy_slot_seconds REAL NOT NULL DEFAULT 0,
    closing INTEGER NOT NULL DEFAULT 0,
    cancel INTEGER NOT NULL DEFAULT 0, -- 0 no, 1 intended, 2 done
    unseen INTEGER NOT NULL DEFAULT 0, -- looks at the batch system that did not list it
    unseen_since REAL,
    unseen_last REAL,
    end_witness TEXT,                -- who says that it has ended; its last events may still come
    end_reason TEXT,
    end_blame TEXT,
    end_said_at REAL,
    joined INTEGER NOT NULL DEFAULT 0, -- a user's own job: not ours to cancel
    discard INTEGER NOT NULL DEFAULT 0 -- its directory in the spool: 0 kept, 1 is to go, 2 gone
) WITHOUT ROWID;
CREATE INDEX live_allocations ON allocations (tag) WHERE state != 'ended';

CREATE INDEX planned_allocations ON allocations (planned_at, tag);
CREATE INDEX ended_allocations ON allocations (ended_at) WHERE state = 'ended';
CREATE INDEX kept_allocations ON allocations (ended_at) WHERE state = 'ended' AND discard = 0;
CREATE INDEX leaving_allocations ON allocations (tag) WHERE discard = 1;

CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    what TEXT NOT NULL,              -- attempt | allocation
    name TEXT NOT NULL,
    at REAL NOT NULL,
    was TEXT,
    became TEXT NOT NULL,
    why TEXT NOT NULL
);
CREATE INDEX history_of ON history (name);

CREATE TABLE spendings (what TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX spendings_at ON spendings (what, at);
"""
