"""Keys that operators know from other servers of the protocol: translated, or named as ignored.

A key maps to one of ours, or is known to mean nothing here; anything else is a typing error and
treated as such. Pure.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Translation:
    """Our key for a foreign one, and how to turn a value written for it into one of ours."""

    path: KeyPath
    convert: Callable[[object], object] | None = None


def _log_level(raw: object) -> object:
    """The level that a filter such as ``warn,restate=info`` gives to the server's own events."""
    if not isinstance(raw, str):
        return raw
    level = "info"
    for directive in raw.split(","):
        target, equals, word = directive.strip().rpartition("=")
        if not equals or target in ("restate", "perdure"):
            level = word
            if equals:
                break
    return {"trace": "debug", "warn": "warning", "off": "error"}.get(level.lower(), level)


def _log_colours(raw: object) -> object:
    words: dict[object, str] = {True: "never", False: "auto", "true": "never", "false": "auto"}
    return words.get(raw, "true or false") if isinstance(raw, bool | str) else raw


_INVOKER = {
    "inactivity-timeout": "inactivity-timeout",
    "abort-timeout": "abort-timeout",
    "concurrent-invocations-limit": "concurrent-invocations-max",
    "message-size-limit": "message-bytes-max",
    "eager-state-size-limit": "eager-state-bytes-max",
    "connect-timeout": "connect-timeout",
    "additional-request-headers": "additional-request-headers",
    "request-identity-private-key-pem-file": "request-identity-private-key-pem-file",
    "request-compression-threshold": "request-compression-threshold",
    "aws-profile": "aws-profile",
    "aws-assume-role-external-id": "aws-assume-role-external-id",
}
_SNAPSHOTS = {
    "destination": "destination",
    "snapshot-interval": "interval",
    "snapshot-interval-num-records": "records",
    "aws-profile": "aws-profile",
    "aws-region": "region",
    "aws-endpoint-url": "endpoint-url",
}
_RETRY = {
    "initial-interval": "initial-interval",
    "exponentiation-factor": "exponentiation-factor",
    "max-interval": "interval-max",
    "max-attempts": "attempts-max",
    "on-max-attempts": "on-max-attempts",
}
_RETENTIONS = ("journal", "idempotency", "workflow-completion")

TRANSLATIONS: dict[KeyPath, Translation] = {
    ("log-filter",): Translation(("log-level",), _log_level),
    ("tracing-services-endpoint",): Translation(("tracing-endpoint",)),
    ("log-disable-ansi-codes",): Translation(("log-colours",), _log_colours),
    ("worker", "trim-delay-interval"): Translation(("worker", "trim-delay")),
    ("default-num-partitions",): Translation(("worker", "partition-count")),
    ("ingress", "advertised-ingress-endpoint"): Translation(("ingress", "advertised-address")),
    ("ingress", "concurrent-api-requests-limit"): Translation(
        ("ingress", "concurrent-requests-max")
    ),
    ("ingress", "request-size-limit"): Translation(("ingress", "request-bytes-max")),
    ("admin", "concurrent-api-requests-limit"): Translation(("admin", "concurrent-requests-max")),
    ("admin", "query-engine", "memory-size"): Translation(("query", "memory-bytes-max")),
    **{
        ("worker", "invoker", theirs): Translation(("invoker", ours))
        for theirs, ours in _INVOKER.items()
    },
    **{
        ("worker", "snapshots", theirs): Translation(("snapshots", ours))
        for theirs, ours in _SNAPSHOTS.items()
    },
    **{
        ("default-retry-policy", theirs): Translation(("retry", ours))
        for theirs, ours in _RETRY.items()
    },
    **{(f"default-{name}-retention",): Translation(("retention", name)) for name in _RETENTIONS},
    **{
        (f"max-{name}-retention",): Translation(("retention", f"{name}-max"))
        for name in _RETENTIONS
    },
}

# What an operator must know beyond "is ignored".
CONSEQUENCES: dict[KeyPath, str] = {
    ("worker", "invoker", "http-proxy"): "services are called directly",
    ("default-replication",): "among several nodes cluster.replication counts",
    ("roles",): "a node has all roles",
    ("ingress", "kafka-clusters"): "nothing is read from Kafka",
    ("listen-mode",): "listeners are TCP",
}

# Tables with every key in them.
_TABLES: tuple[KeyPath, ...] = (
    ("metadata-client",),
    ("metadata-server",),
    ("metadata-store",),
    ("metadata-store-client",),
    ("network-error-retry-policy",),
    ("bifrost",),
    ("log-server",),
    ("networking",),
    ("aws",),
    ("admin", "rate-limiting"),
    ("ingress", "ingestion"),
    ("ingress", "kafka-clusters"),
    ("worker", "storage"),
    ("worker", "shuffle"),
    ("worker", "invoker", "rate-limiting"),
)
_NAMES = re.compile(
    r"(rocksdb|gossip|experimental|tracing-(filter|json)|tokio-console|hlc|metadata)-[a-z0-9-]+"
    r"|roles|location|force-node-id|auto-provision|default-replication|default-log-retention"
    r"|advertised-address|advertised-host|bind-port|listen-mode|use-random-ports"
    r"|initialization-timeout|disable-(prometheus|telemetry|controlled-idempotent-sharding)"
    r"|default-thread-pool-size|storage-(high|low)-priority-bg-threads"
    r"|ingress\.(http2-[a-z0-9-]+|bind-ip|bind-port|listen-mode|use-random-ports|advertised-host)"
    r"|admin\.(disable-web-ui|deployment-routing-headers|heartbeat-interval|log-[a-z0-9-]+"
    r"|storage-[a-z0-9-]+|disable-cluster-controller|bind-ip|bind-port|listen-mode"
    r"|use-random-ports|advertised-host|default-[a-z0-9-]+|query-engine\.(?!memory-size$).+)"
    r"|worker\.(cleanup-interval|internal-queue-length|num-timers-[a-z-]+"
    r"|snapshots\.(?!(?:destination|snapshot-interval(-num-records)?|aws-(profile|region"
    r"|endpoint-url))$)[a-z0-9.-]+"
    r"|experimental-[a-z0-9-]+|max-command-batch-[a-z]+|rule-book-poll-interval"
    r"|[a-z-]+-memory-limit)"
    r"|worker\.invoker\.(http2?-[a-z0-9-]+|in-memory-queue-length-limit|memory-limit"
    r"|per-invocation-[a-z-]+|message-size-warning"
    r"|request-identity-(?!private)[a-z-]+|max-awaited-future-depth|tmp-dir|disable-eager-state"
    r"|initial-max-send-streams|(invocation|action)-throttling)",
    re.ASCII,
)
# Variables with the foreign prefix that clients and services read, or that a container platform
# sets for a service of that name; they are nobody's settings.
_CLIENT_VARIABLES = re.compile(
    r"(ADMIN_URL|INGRESS_URL|HOST|HOST_SCHEME|AUTH_TOKEN|ENVIRONMENT|EDITOR|CONFIG|CLI_\w+|API_\w+"
    r"|IDENTITY_\w+|LOGGING|JOURNAL_\w+|CORE_\w+)",
    re.ASCII,
)
_PLATFORM_VARIABLES = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)", re.ASCII
)


def is_ignored(path: KeyPath) -> bool:
    """Whether the key is known to mean nothing here."""
    if any(path[: len(table)] == table for table in _TABLES):
        return True
    return any(
        _NAMES.fullmatch(".".join(path[:length])) is not None for length in range(1, len(path) + 1)
    )


def consequence(path: KeyPath) -> str:
    """What ignoring the key means."""
    for length in range(len(path), 0, -1):
        if path[:length] in CONSEQUENCES:
            return f"is ignored: {CONSEQUENCES[path[:length]]}"
    return "means nothing here and is ignored"


def is_setting_variable(stem: str) -> bool:
    """Whether ``RESTATE_<stem>`` is meant for a server."""
    return not _CLIENT_VARIABLES.fullmatch(stem) and not is_platform_variable(stem)


def is_platform_variable(stem: str) -> bool:
    """Whether a container platform sets it for a service that is called like the prefix."""
    return _PLATFORM_VARIABLES.fullmatch(stem) is not None
