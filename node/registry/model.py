"""Deployments and the services they carry, as stored in metadata. Immutable values.

Encoded as maps, so that fields can come and go between releases. Durations are in milliseconds;
None means "not said here": the handler's value overrides the service's, that the server's.
"""

from enum import Enum

import msgspec


class ServiceType(Enum):
    """What kind of thing a service is."""

    SERVICE = "Service"
    VIRTUAL_OBJECT = "VirtualObject"
    WORKFLOW = "Workflow"

    @property
    def is_keyed(self) -> bool:
        return self is not ServiceType.SERVICE


class OnMaxAttempts(Enum):
    """What happens when retries are exhausted."""

    PAUSE = "Pause"
    KILL = "Kill"


class RetryOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Retry settings said by a manifest. ``attempts_max`` counts the first attempt."""

    initial_interval_ms: int | None = None
    factor: float | None = None
    interval_ms_max: int | None = None
    attempts_max: int | None = None
    on_max_attempts: OnMaxAttempts | None = None


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """Settings said by a manifest, or by an operator afterwards."""

    inactivity_timeout_ms: int | None = None
    abort_timeout_ms: int | None = None
    journal_retention_ms: int | None = None
    idempotency_retention_ms: int | None = None
    workflow_completion_retention_ms: int | None = None
    lazy_state: bool | None = None
    retry: RetryOptions = RetryOptions()


class InputRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a handler takes. ``is_open``: the manifest said nothing. ``json_schema``: JSON text."""

    is_open: bool = False
    required: bool = False
    content_type: str | None = None
    json_schema: bytes | None = None


class OutputRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a handler gives. ``json_schema``: JSON text."""

    content_type: str | None = None
    sets_content_type_if_empty: bool = False
    json_schema: bytes | None = None


class Handler(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function of a service. ``kind``: a ``HandlerKind``. ``public`` None: as the service."""

    name: str
    kind: int
    input: InputRules
    output: OutputRules
    public: bool | None = None
    options: Options = Options()
    documentation: str | None = None
    metadata: dict[str, str] = {}


class Service(msgspec.Struct, frozen=True, omit_defaults=True):
    """A revision of a service."""

    name: str
    type: ServiceType
    handlers: dict[str, Handler]
    revision: int = 1
    public: bool = True
    options: Options = Options()
    documentation: str | None = None
    metadata: dict[str, str] = {}


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """An AWS Lambda function, qualified by version or alias. ``compression``: what bodies take."""

    arn: str
    assume_role_arn: str | None = None
    compression: str | None = None

    @property
    def region(self) -> str:
        """The region it is in."""
        return self.arn.split(":")[3]


class Deployment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A registered endpoint and the revisions it carries.

    ``uri`` and ``http_version`` (``HTTP/2.0`` or 1.1) are empty where ``function`` is set.
    """

    id: str
    uri: str
    http_version: str
    is_bidirectional: bool
    protocol_version_min: int
    protocol_version_max: int
    created_at_ms: int
    services: dict[str, Service]
    sdk_version: str | None = None
    headers: dict[str, str] = {}
    metadata: dict[str, str] = {}
    function: Function | None = None

    @property
    def address(self) -> str:
        """Where it is: a URI, or a function's ARN."""
        return self.uri if self.function is None else self.function.arn


class Registry(msgspec.Struct, frozen=True):
    """Everything that is registered. ``latest``: deployment id of each service's last revision."""

    deployments: dict[str, Deployment] = {}
    latest: dict[str, str] = {}

    def service(self, name: str) -> Service | None:
        """The latest revision of a service."""
        deployment = self.latest.get(name)
        return self.deployments[deployment].services[name] if deployment is not None else None
