"""The configuration: every setting with its key, default, unit, bounds and meaning, stated once.

The classes are the values that the node reads; ``settings()`` is the table that parsing, the
``perdure config`` command and docs/configuration.md are driven by. A setting's key is its field's
name in kebab case without the unit (``abort_timeout_ms`` is ``abort-timeout``); nested classes are
tables of the file. Pure.
"""

# Defaults are made by ``_setting``, which is ``dataclasses.field`` with the rest of the row.
# ruff: noqa: RUF009

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from perdure.cluster.core.trim import DurabilityMode
from perdure.core.limits import (
    CONCURRENT_INVOCATIONS_MAX,
    CONNECT_TIMEOUT_MS,
    EAGER_STATE_BYTES_MAX,
    FUNCTION_BODY_BYTES_MAX,
    FUNCTION_CALLS_MAX,
    FUNCTION_COMPRESSION_BYTES_MIN,
    KIB,
    MESSAGE_BYTES_MAX,
    PARTITIONS_MAX,
    PARTITIONS_SINGLE_NODE,
    QUERY_MEMORY_BYTES,
    QUERY_MEMORY_BYTES_MAX,
    QUERY_MEMORY_BYTES_MIN,
    QUERY_TIMEOUT_MS,
    QUERY_TIMEOUT_MS_MAX,
)
from perdure.core.limits_snapshots import SNAPSHOTS_RETAINED_MAX
from perdure.node.config.choices import HttpCore, LogColours, LogFormat, LogLevel
from perdure.node.config.cluster_model import ClusterConfig, EtcdConfig
from perdure.node.config.field import setting as _setting
from perdure.node.config.kinds import (
    ADDRESS,
    BOOLEAN,
    DESTINATION,
    HEADERS,
    HOST,
    NAME,
    PATH,
    TEXT,
    URL,
    Kind,
    choice,
    count,
    duration,
    factor,
    optional,
    size,
)
from perdure.node.config.values import Address
from perdure.node.registry.model import OnMaxAttempts

_SECOND_MS = 1_000
_MINUTE_MS = 60 * _SECOND_MS
_HOUR_MS = 60 * _MINUTE_MS
_DAY_MS = 24 * _HOUR_MS
_COUNT_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. ``default``: as the field holds it."""

    path: tuple[str, ...]
    field_path: tuple[str, ...]
    kind: Kind[object]
    default: object
    meaning: str

    @property
    def key(self) -> str:
        """The key in full, such as ``ingress.bind-address``."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "PERDURE_" + variable_stem(self.path)


def variable_stem(path: tuple[str, ...]) -> str:
    """A key path as it stands in variables, behind the prefix."""
    return "__".join(part.replace("-", "_").upper() for part in path)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressConfig:
    """Where calls to services come in."""

    bind_address: Address = _setting(
        Address("127.0.0.1", 8080), ADDRESS, "Where callers connect to."
    )
    advertised_address: str | None = _setting(
        None,
        optional(URL, "auto"),
        "How callers reach the ingress; shown by `/version` and in OpenAPI documents. "
        "`auto`: made of the bind address.",
    )
    concurrent_requests_max: int | None = _setting(
        None,
        optional(count(1, _COUNT_MAX), "unlimited"),
        "Requests served at once, waiting ones included; more are answered 429.",
    )
    request_bytes_max: int = _setting(
        MESSAGE_BYTES_MAX,
        size(1 * KIB, MESSAGE_BYTES_MAX),
        "Largest request body; larger ones are answered 413.",
    )
    cors: bool = _setting(
        True, BOOLEAN, "Let scripts of any web origin call the ingress, with credentials."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminConfig:
    """Where the node is administered: registration, invocations, state."""

    bind_address: Address = _setting(
        Address("127.0.0.1", 9070), ADDRESS, "Where operators and tools connect to."
    )
    advertised_address: str | None = _setting(
        None,
        optional(URL, "auto"),
        "How operators reach the admin API. `auto`: made of the bind address.",
    )
    concurrent_requests_max: int | None = _setting(
        None,
        optional(count(1, _COUNT_MAX), "unlimited"),
        "Requests served at once; more are answered 429.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """How this node's work is divided."""

    partition_count: int = _setting(
        PARTITIONS_SINGLE_NODE,
        count(1, PARTITIONS_MAX),
        "Number of partitions. Read at the first start only: it is part of the data from then on.",
    )
    durability_mode: DurabilityMode | None = _setting(
        None,
        optional(choice(DurabilityMode), "auto"),
        "Among several nodes, what must have a record before the log lets go of it: the tables of "
        "all replicas (`replica-set-only`), the snapshots (`snapshot-only`), both "
        "(`snapshot-and-replica-set`), or both but for replicas that have been dead for a day, or "
        "while the log takes more than 16 GiB (`balanced`); `none`: it lets go of nothing. "
        "`auto`: `balanced` with a `snapshots.destination`, else `replica-set-only`, which doesn't "
        "wait for such replicas either once as many as `cluster.replication` have it.",
    )
    trim_delay_ms: int | None = _setting(
        None,
        optional(duration(), "auto"),
        "For so long the log keeps what it could let go of, for replicas that were just away. "
        "`auto`: 10 minutes where snapshots count, else 10 seconds, which is the least.",
    )
    log_verify_interval_ms: int | None = _setting(
        _DAY_MS,
        optional(duration(_SECOND_MS), "never"),
        "Among several nodes, who leads a partition compares the replicas of its log so often by "
        "digest, in the background: `perdure log verify` does it at once.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InvokerConfig:
    """How services are called. Services and handlers may override the timeouts."""

    inactivity_timeout_ms: int = _setting(
        _MINUTE_MS,
        duration(),
        "After this silence an attempt is asked to suspend; it goes on when there is news for it. "
        "`0s`: at once.",
    )
    abort_timeout_ms: int = _setting(
        10 * _MINUTE_MS,
        duration(),
        "After this further silence an attempt that was asked to suspend is aborted and retried.",
    )
    concurrent_invocations_max: int = _setting(
        CONCURRENT_INVOCATIONS_MAX,
        count(1, _COUNT_MAX),
        "Invocations of one partition that run or back off at once; more wait their turn.",
    )
    message_bytes_max: int = _setting(
        MESSAGE_BYTES_MAX,
        size(1 * KIB, MESSAGE_BYTES_MAX),
        "Largest message taken from a service; an attempt that sends a larger one fails.",
    )
    eager_state_bytes_max: int = _setting(
        EAGER_STATE_BYTES_MAX,
        size(0, EAGER_STATE_BYTES_MAX),
        "State sent along with an attempt's start; what is left out is fetched when asked for.",
    )
    connect_timeout_ms: int = _setting(
        CONNECT_TIMEOUT_MS,
        duration(1, _HOUR_MS),
        "Limit for connecting to a service, TLS included.",
    )
    additional_request_headers: tuple[tuple[str, str], ...] = _setting(
        (), HEADERS, "Headers sent to services with each attempt."
    )
    request_identity_private_key_pem_file: Path | None = _setting(
        None,
        optional(PATH, "none"),
        "Signs every request to services with the private key in this file; `perdure identity "
        "create` makes one. `none`: requests are not signed.",
    )
    lambda_calls_max: int = _setting(
        FUNCTION_CALLS_MAX,
        count(1, 10_000),
        "AWS Lambda functions called at once; more calls wait.",
    )
    request_compression_threshold: int = _setting(
        FUNCTION_COMPRESSION_BYTES_MIN,
        size(0, FUNCTION_BODY_BYTES_MAX),
        "Requests to AWS Lambda functions are compressed from this size on, if the SDK takes that.",
    )
    aws_profile: str | None = _setting(
        None,
        optional(NAME, "none"),
        "Profile of the AWS configuration files with which functions are called. `none`: what the "
        "environment says.",
    )
    aws_assume_role_external_id: str | None = _setting(
        None,
        optional(TEXT, "none"),
        "External id given when a deployment names a role to assume.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotsConfig:
    """Copies of all state in an object store, from which a lost node can be restored."""

    destination: str | None = _setting(
        None,
        optional(DESTINATION, "none"),
        "Where snapshots go: `s3://bucket/prefix`, in S3 or what speaks its protocol (needs `pip "
        "install 'perdure[s3]'`), or `file:///directory`. Each cluster needs one of its own. "
        "`none`: no snapshots are taken.",
    )
    interval_ms: int | None = _setting(
        15 * _MINUTE_MS,
        optional(duration(_SECOND_MS), "never"),
        "A snapshot is taken this long after the last one, if anything has happened. `never`: "
        "only for the number of records, and when asked for.",
    )
    records: int | None = _setting(
        100_000,
        optional(count(1, 1_000_000_000), "unlimited"),
        "A snapshot is taken once a partition has so many records that the last one lacks.",
    )
    retain: int = _setting(2, count(1, SNAPSHOTS_RETAINED_MAX), "Snapshots kept.")
    endpoint_url: str | None = _setting(
        None, optional(URL, "auto"), "Where the object store is. `auto`: AWS S3 of the region."
    )
    region: str | None = _setting(
        None, optional(NAME, "auto"), "Region of the bucket. `auto`: as the environment says."
    )
    path_style: bool = _setting(
        False,
        BOOLEAN,
        "Name the bucket in the path of requests instead of the host; many stores that are not AWS "
        "want that.",
    )
    aws_profile: str | None = _setting(
        None,
        optional(NAME, "none"),
        "Profile of the AWS configuration files with the credentials. `none`: what the environment "
        "says.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryConfig:
    """What one SQL statement may take."""

    timeout_ms: int = _setting(
        QUERY_TIMEOUT_MS,
        duration(_SECOND_MS, QUERY_TIMEOUT_MS_MAX),
        "A statement that takes longer, its answer's way to the client included, is given up.",
    )
    memory_bytes_max: int = _setting(
        QUERY_MEMORY_BYTES,
        size(QUERY_MEMORY_BYTES_MIN, QUERY_MEMORY_BYTES_MAX),
        "Memory that a statement may hold to sort, group and join; one that needs more is refused.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    """How long things are kept after an invocation is over; services and handlers may override."""

    journal_ms: int = _setting(
        _DAY_MS, duration(), "How long the journal is kept. `0s`: not at all."
    )
    idempotency_ms: int = _setting(
        _DAY_MS, duration(), "How long the result of a call with an idempotency key is kept."
    )
    workflow_completion_ms: int = _setting(
        _DAY_MS, duration(), "How long a workflow's result, state and promises are kept."
    )
    journal_ms_max: int | None = _setting(
        None, optional(duration(), "unlimited"), "Clamps what services ask for."
    )
    idempotency_ms_max: int | None = _setting(
        None, optional(duration(), "unlimited"), "Clamps what services ask for."
    )
    workflow_completion_ms_max: int | None = _setting(
        None, optional(duration(), "unlimited"), "Clamps what services ask for."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """How a failed attempt is retried; services and handlers may override."""

    initial_interval_ms: int = _setting(500, duration(1, _DAY_MS), "Wait before the first retry.")
    exponentiation_factor: float = _setting(
        2.0, factor(1, 100), "By how much each further wait is longer."
    )
    interval_ms_max: int | None = _setting(
        _MINUTE_MS, optional(duration(1), "unlimited"), "Longest wait."
    )
    attempts_max: int | None = _setting(
        70, optional(count(1, _COUNT_MAX), "unlimited"), "Attempts in all, the first included."
    )
    on_max_attempts: OnMaxAttempts = _setting(
        OnMaxAttempts.PAUSE,
        choice(OnMaxAttempts),
        "What happens after the last attempt: `pause` waits for an operator, `kill` ends the "
        "invocation with the failure.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything an operator may set. Immutable; where values came from is not its business."""

    node_name: str = _setting(
        "node-1",
        NAME,
        "Names the node and its folder in the data directory. Not the host name by default: a "
        "container that is replaced must find its data again.",
    )
    cluster_name: str = _setting(
        "localcluster", NAME, "Guards against mixing up data directories; told to services."
    )
    base_dir: Path = _setting(
        Path("perdure-data"), PATH, "The data directory; relative to the working directory."
    )
    bind_ip: str | None = _setting(
        None,
        optional(HOST, "none"),
        "Host of each listener whose own bind address isn't set; `0.0.0.0` in containers.",
    )
    bind_address: Address = _setting(
        Address("127.0.0.1", 5122), ADDRESS, "The node's own port: health and metrics."
    )
    shutdown_timeout_ms: int = _setting(
        _MINUTE_MS, duration(0, _DAY_MS), "After this a shutdown no longer waits for requests."
    )
    log_level: LogLevel = _setting(
        LogLevel.INFO, choice(LogLevel), "Events of this level and above are written to stderr."
    )
    log_format: LogFormat = _setting(LogFormat.PRETTY, choice(LogFormat), "How they are written.")
    log_colours: LogColours = _setting(
        LogColours.AUTO, choice(LogColours), "`auto`: coloured if stderr is a terminal."
    )
    tracing_endpoint: str | None = _setting(
        None,
        optional(URL, "none"),
        "OpenTelemetry collector that gets traces, over OTLP/HTTP (port 4318 as a rule); without a "
        "path, `/v1/traces` is meant. Needs `pip install 'perdure[traces]'`. `none`: no traces.",
    )
    tracing_headers: tuple[tuple[str, str], ...] = _setting(
        (), HEADERS, "Headers sent to the collector, such as credentials."
    )
    http_core: HttpCore = _setting(
        HttpCore.AUTO,
        choice(HttpCore),
        "The HTTP implementation: `zttp` is native and fast, `hyper` is pure Python and careful.",
    )
    ingress: IngressConfig = field(default_factory=IngressConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    invoker: InvokerConfig = field(default_factory=InvokerConfig)
    query: QueryConfig = field(default_factory=QueryConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    etcd: EtcdConfig = field(default_factory=EtcdConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    snapshots: SnapshotsConfig = field(default_factory=SnapshotsConfig)

    @property
    def is_clustered(self) -> bool:
        """Whether the node is one among several, or is to become it."""
        return bool(self.cluster.members or self.etcd.endpoints)


TABLES: dict[str, type] = {
    "ingress": IngressConfig,
    "admin": AdminConfig,
    "worker": WorkerConfig,
    "invoker": InvokerConfig,
    "query": QueryConfig,
    "cluster": ClusterConfig,
    "etcd": EtcdConfig,
    "retention": RetentionConfig,
    "retry": RetryConfig,
    "snapshots": SnapshotsConfig,
}


def settings() -> Iterator[Setting]:
    """The table, in the order of the classes: the top level first."""
    yield from _rows(Config, ())
    for name, table in TABLES.items():
        yield from _rows(table, (name,))


def advertised(explicit: str | None, address: Address, port: int) -> str:
    """The URL to tell others of a listener that got ``port``."""
    if explicit is not None:
        return explicit
    return f"http://{Address(address.reachable_host, port)}/"


def _rows(table: type, prefix: tuple[str, ...]) -> Iterator[Setting]:
    for item in fields(table):
        if "kind" not in item.metadata:
            continue
        key = "-".join(part for part in item.name.split("_") if part != "ms")
        yield Setting(
            path=(*prefix, key),
            field_path=(*prefix, item.name),
            kind=item.metadata["kind"],
            default=item.default,
            meaning=item.metadata["meaning"],
        )
