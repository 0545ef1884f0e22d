"""Settings in effect, and everything the hot path needs to know of a handler, resolved once.

A ``Catalogue`` is made whenever registry or defaults change, and looked into for each call.
"""

from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from perdure.core.limits import EAGER_STATE_BYTES_MAX
from perdure.core.retry import RetryPolicy
from perdure.node.http.stream import Origin
from perdure.node.registry.manifest import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN
from perdure.node.registry.model import (
    Deployment,
    Function,
    Handler,
    OnMaxAttempts,
    Options,
    Registry,
    Service,
)
from perdure.storage.tables.invocations import HandlerKind

V = TypeVar("V")

_DAY_MS = 24 * 3600 * 1000
_RETRY = RetryPolicy(initial_ms=500, factor=2.0, interval_ms_max=60_000, attempts_max=70)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The server's own settings. Retentions are clamped to their maxima, None for no maximum."""

    inactivity_timeout_ms: int = 60_000
    abort_timeout_ms: int = 600_000
    journal_retention_ms: int = _DAY_MS
    idempotency_retention_ms: int = _DAY_MS
    workflow_completion_retention_ms: int = _DAY_MS
    journal_retention_ms_max: int | None = None
    idempotency_retention_ms_max: int | None = None
    workflow_completion_retention_ms_max: int | None = None
    retry: RetryPolicy = _RETRY
    on_max_attempts: OnMaxAttempts = OnMaxAttempts.PAUSE
    eager_state_bytes_max: int = EAGER_STATE_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """A handler's settings after all overrides. Times in ms."""

    inactivity_timeout_ms: int
    abort_timeout_ms: int
    completion_retention_ms: int
    journal_retention_ms: int
    eager_state_bytes_max: int
    retry: RetryPolicy
    on_max_attempts: OnMaxAttempts
    public: bool

    def retention(self, kind: int, has_idempotency_key: bool) -> tuple[int, int]:
        """How long completion and journal of a call are kept (spec 5.4)."""
        if kind == HandlerKind.WORKFLOW_RUN or has_idempotency_key:
            completion = self.completion_retention_ms
            return completion, min(self.journal_retention_ms, completion)
        return self.journal_retention_ms, self.journal_retention_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where and how a handler of a deployment is called.

    ``origin``, ``path_prefix`` and ``query`` mean nothing where ``function`` is set.
    """

    deployment_id: str
    origin: Origin
    path_prefix: str
    query: str
    headers: tuple[tuple[bytes, bytes], ...]
    is_bidirectional: bool
    protocol_version_min: int
    protocol_version_max: int
    service: Service
    handler: Handler
    effective: Effective
    function: Function | None = None

    def target(self, path: str) -> str:
        """The request target for a protocol path such as ``/invoke/S/h``."""
        return f"{self.path_prefix}{path}{self.query}"

    @property
    def is_supported(self) -> bool:
        """Whether there is a protocol version in common."""
        return (
            self.protocol_version_min <= PROTOCOL_VERSION_MAX
            and self.protocol_version_max >= PROTOCOL_VERSION_MIN
        )


class Catalogue:
    """The registry as the hot path sees it."""

    def __init__(self, registry: Registry, defaults: Defaults) -> None:
        self.registry = registry
        self.defaults = defaults
        self._by_deployment: dict[tuple[str, str, str], Route] = {}
        self._latest: dict[tuple[str, str], Route] = {}
        for deployment in registry.deployments.values():
            origin, prefix, query = locate(deployment.uri, deployment.http_version)
            headers = tuple(
                (name.lower().encode(), value.encode())
                for name, value in deployment.headers.items()
            )
            for service in deployment.services.values():
                for handler in service.handlers.values():
                    route = Route(
                        deployment_id=deployment.id,
                        origin=origin,
                        path_prefix=prefix,
                        query=query,
                        headers=headers,
                        is_bidirectional=deployment.is_bidirectional,
                        protocol_version_min=deployment.protocol_version_min,
                        protocol_version_max=deployment.protocol_version_max,
                        service=service,
                        handler=handler,
                        effective=effective(defaults, service, handler),
                        function=deployment.function,
                    )
                    self._by_deployment[deployment.id, service.name, handler.name] = route
                    if registry.latest.get(service.name) == deployment.id:
                        self._latest[service.name, handler.name] = route

    def latest(self, service: str, handler: str) -> Route | None:
        """The route of the latest revision."""
        return self._latest.get((service, handler))

    def pinned(self, deployment_id: str, service: str, handler: str) -> Route | None:
        """The route in a given deployment."""
        return self._by_deployment.get((deployment_id, service, handler))

    def service(self, name: str) -> Service | None:
        """The latest revision of a service."""
        return self.registry.service(name)

    def deployment(self, deployment_id: str) -> Deployment | None:
        return self.registry.deployments.get(deployment_id)


def locate(uri: str, http_version: str | None) -> tuple[Origin, str, str]:
    """Origin, path without its last slash, and query with its question mark, of a base URI."""
    parts = urlsplit(uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    origin = Origin(parts.scheme, parts.hostname or "", port, http_version)
    return origin, parts.path.rstrip("/"), f"?{parts.query}" if parts.query else ""


def effective(defaults: Defaults, service: Service, handler: Handler) -> Effective:
    """Merge settings: server, then service, then handler; clamp retentions."""
    layers = (handler.options, service.options)
    is_run = handler.kind == HandlerKind.WORKFLOW_RUN
    if is_run:
        completion = _first(layers, "workflow_completion_retention_ms")
        completion = defaults.workflow_completion_retention_ms if completion is None else completion
        completion = _clamp(completion, defaults.workflow_completion_retention_ms_max)
    else:
        completion = _first(layers, "idempotency_retention_ms")
        completion = defaults.idempotency_retention_ms if completion is None else completion
        completion = _clamp(completion, defaults.idempotency_retention_ms_max)
    journal = _first(layers, "journal_retention_ms")
    inactivity = _first(layers, "inactivity_timeout_ms")
    abort = _first(layers, "abort_timeout_ms")
    lazy = handler.options.lazy_state
    if lazy is None:
        lazy = service.options.lazy_state
    retry, on_max_attempts = _retry(defaults, layers)
    return Effective(
        inactivity_timeout_ms=defaults.inactivity_timeout_ms if inactivity is None else inactivity,
        abort_timeout_ms=defaults.abort_timeout_ms if abort is None else abort,
        completion_retention_ms=completion,
        journal_retention_ms=_clamp(
            defaults.journal_retention_ms if journal is None else journal,
            defaults.journal_retention_ms_max,
        ),
        eager_state_bytes_max=0 if lazy else defaults.eager_state_bytes_max,
        retry=retry,
        on_max_attempts=on_max_attempts,
        public=service.public if handler.public is None else service.public and handler.public,
    )


def _retry(defaults: Defaults, layers: tuple[Options, ...]) -> tuple[RetryPolicy, OnMaxAttempts]:
    stated = [layer.retry for layer in layers]
    base = defaults.retry
    initial = next(
        (r.initial_interval_ms for r in stated if r.initial_interval_ms is not None), None
    )
    factor = next((r.factor for r in stated if r.factor is not None), None)
    interval = next((r.interval_ms_max for r in stated if r.interval_ms_max is not None), None)
    attempts = next((r.attempts_max for r in stated if r.attempts_max is not None), None)
    word = next((r.on_max_attempts for r in stated if r.on_max_attempts is not None), None)
    policy = RetryPolicy(
        initial_ms=base.initial_ms if initial is None else initial,
        factor=base.factor if factor is None else factor,
        interval_ms_max=base.interval_ms_max if interval is None else interval,
        attempts_max=base.attempts_max if attempts is None else attempts,
    )
    return policy, defaults.on_max_attempts if word is None else word


def _first(layers: tuple[Options, ...], field: str) -> int | None:
    for layer in layers:
        value: int | None = getattr(layer, field)
        if value is not None:
            return value
    return None


def _clamp(value: int, maximum: int | None) -> int:
    return value if maximum is None else min(value, maximum)
