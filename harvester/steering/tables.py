"""The tables of the central service. ``migrations`` brings a database to this form.

Instants are seconds since the epoch (UTC). JSON is kept as text: the service never searches in
it, and both databases then behave alike.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData()
# SQLite counts up by itself only in a column that is called INTEGER.
_SERIAL = BigInteger().with_variant(Integer, "sqlite")

TASKS = Table(
    "tasks",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False),
    Column("owner", Text, nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("document", Text, nullable=False),  # the task document as submitted
    Column("seed", BigInteger, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("sampler", Text, nullable=False),
    Column("sampler_options", Text, nullable=False),
    Column("max_points", Integer, nullable=False),  # of one segment
    Column("parallel", Integer, nullable=False),
    Column("max_jobs", Integer, nullable=False),  # over all segments
    Column("charge_limit", Integer, nullable=False),  # max_jobs, raised by each retry
    Column("per_iteration", Integer),
    Column("min_unevaluated", Integer, nullable=False),
    Column("segments", Integer, nullable=False),
    Column("sites", Text),  # JSON list of the sites that may evaluate; None: any
    Column("early_stopping", String(16)),  # None: reports are only kept
    Column("attempts", Integer, nullable=False, default=0),
    Column("charged_attempts", Integer, nullable=False, default=0),
    # An id is never given out again, even after the last task was deleted: attempt ids hang on it.
    sqlite_autoincrement=True,
)

SEGMENTS = Table(
    "segments",
    METADATA,
    Column("task_id", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("name", Text),  # None: the task is not segmented
    Column("model_id", Text),  # JSON; as the first of the pair that a segmented point is
    Column("payload_id", Text, nullable=False),
    Column("search_space", Text, nullable=False),
    Column("n_asks", Integer, nullable=False, default=0),
    Column("exhausted", Boolean, nullable=False, default=False),
    # Points by state: moved in the transaction that moves a point, and nowhere else.
    Column("waiting", Integer, nullable=False, default=0),
    Column("leased", Integer, nullable=False, default=0),
    Column("done", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    Column("pruned", Integer, nullable=False, default=0),
    Column("cancelled", Integer, nullable=False, default=0),
    Column("best_point", Integer),
    Column("best_loss", Float),
)

PAYLOADS = Table(
    "payloads",
    METADATA,
    Column("payload_id", Text, primary_key=True),
    Column("fields", Text, nullable=False),
)

POINTS = Table(
    "points",
    METADATA,
    Column("task_id", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("segment", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("parameters", Text, nullable=False),
    Column("sampler", Text, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    Column("grants", Integer, nullable=False, default=0),  # number of its newest lease
    Column("attempts", Integer, nullable=False, default=0),
    Column("loss", Float),
    Column("message", Text),
    Column("metadata", Text),
    Column("created_at", Float, nullable=False),
    Column("settled_at", Float),
    Index("points_by_state", "task_id", "state", "number"),
)

LEASES = Table(
    "leases",
    METADATA,
    Column("task_id", Integer, primary_key=True),
    Column("point", Integer, primary_key=True),
    Column("grant_no", Integer, primary_key=True),
    Column("holder", Text, nullable=False),  # user
    Column("harvester", Text, nullable=False),
    Column("request_key", Text, nullable=False),
    Column("state", String(16), nullable=False),  # live expired settled cancelled
    Column("stop", Text),  # why the harvester should stop what runs
    Column("granted_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("leases_by_expiry", "state", "expires_at"),
    Index("leases_by_request", "holder", "harvester", "request_key"),
)

ATTEMPTS = Table(
    "attempts",
    METADATA,
    Column("attempt", Text, primary_key=True),
    Column("task_id", Integer, nullable=False),
    Column("point", Integer, nullable=False),
    Column("n", Integer, nullable=False),  # of the point's own sequence
    Column("state", String(16), nullable=False),
    Column("final", Boolean, nullable=False),
    Column("counted", Boolean, nullable=False),
    Column("blame", Text),
    Column("reason", Text),
    Column("loss", Float),
    Column("message", Text),
    Column("allocation", Text),
    Column("node", Text),
    Column("started", Text),
    Column("ended", Text),
    Column("resumed_from", Text),
    Column("stdout", Text),
    Column("stderr", Text),
    Column("harvester", Text, nullable=False),
    Column("told_at", Float, nullable=False),
    Index("attempts_by_point", "task_id", "point", "n"),
)

RESULT_FILES = Table(
    "result_files",
    METADATA,
    Column("attempt", Text, primary_key=True),
    Column("role", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("task_id", Integer, nullable=False),
    Column("point", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Index("result_files_by_point", "task_id", "point"),
)

REPORTS = Table(
    "reports",
    METADATA,
    Column("task_id", Integer, primary_key=True),
    Column("point", Integer, primary_key=True),
    Column("grant_no", Integer, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("attempt", Text, nullable=False),
    Column("loss", Float),
    Column("fields", Text, nullable=False),
)

FILES = Table(
    "files",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("uploader", Text, nullable=False),
    Column("completed_at", Float, nullable=False),
)

TOKENS = Table(
    "tokens",
    METADATA,
    Column("sha256", String(64), primary_key=True),  # of the token; the token is never kept
    Column("owner", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("first_seen_at", Float, nullable=False),
    Column("revoked_at", Float),
)

REQUESTS = Table(
    "requests",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("sender", Text, primary_key=True),  # harvester, or "submit"
    Column("key", Text, primary_key=True),
    Column("answer", Text, nullable=False),
    Column("at", Float, nullable=False, index=True),
)

ASKS = Table(
    "asks",
    METADATA,
    Column("task_id", Integer, primary_key=True),
    Column("segment", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("got", Integer, nullable=False),
    Column("duration_s", Float, nullable=False),
    Column("note", Text),
)

TASK_LOG = Table(
    "task_log",
    METADATA,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("task_id", Integer, nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("text", Text, nullable=False),
)

CHANGES = Table(
    "changes",
    METADATA,
    Column("seq", _SERIAL, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("task_id", Integer, nullable=False, index=True),
    Column("what", String(32), nullable=False),
    Column("fields", Text, nullable=False),
    sqlite_autoincrement=True,
)

OF_A_TASK = (
    (SEGMENTS, SEGMENTS.c.task_id),
    (POINTS, POINTS.c.task_id),
    (LEASES, LEASES.c.task_id),
    (ATTEMPTS, ATTEMPTS.c.task_id),
    (RESULT_FILES, RESULT_FILES.c.task_id),
    (REPORTS, REPORTS.c.task_id),
    (ASKS, ASKS.c.task_id),
    (TASK_LOG, TASK_LOG.c.task_id),
)
