"""How the registry changes: registration, update, removal, settings. Registry in, registry out."""

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit, urlunsplit

import msgspec

from perdure.core.errors import (
    BadRequest,
    DeploymentNotFound,
    IncompatibleUpdate,
    ServiceNotFound,
    ServiceTypeChanged,
)
from perdure.node.registry.manifest import Discovered
from perdure.node.registry.model import (
    Deployment,
    Function,
    Handler,
    Options,
    Registry,
    Service,
    ServiceType,
)

_URI_LENGTH_MAX = 4096
_FUNCTION_ARN = re.compile(
    r"arn:aws[a-z-]{0,30}:lambda:[a-z0-9-]{1,40}:[0-9]{12}:function:[A-Za-z0-9_-]{1,64}"
    r":(\$LATEST|[A-Za-z0-9_-]{1,128})",
    re.ASCII,
)
_ROLE_ARN = re.compile(r"arn:aws[a-z-]{0,30}:iam::[0-9]{12}:role/[\w+=,.@/-]{1,576}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An endpoint that was discovered and is to be registered.

    ``uri`` and ``http_version`` are empty where it is a ``function``.
    """

    id: str
    uri: str
    http_version: str
    discovered: Discovered
    headers: dict[str, str]
    metadata: dict[str, str]
    created_at_ms: int
    allows_breaking: bool
    overwrites: bool
    function: Function | None = None

    @property
    def address(self) -> str:
        """A URI, or a function's ARN."""
        return self.uri if self.function is None else self.function.arn


class Change(Enum):
    """What a registration did."""

    CREATED = "created"
    UNCHANGED = "unchanged"
    OVERWRITTEN = "overwritten"


@dataclass(frozen=True, slots=True)
class Registered:
    """The registry afterwards, and the deployment in it."""

    registry: Registry
    deployment: Deployment
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A deployment at a new address or with new headers, as it was discovered there.

    ``overwrites``: its services are replaced by what was discovered, at the same revisions.
    """

    uri: str
    http_version: str
    headers: dict[str, str]
    discovered: Discovered
    overwrites: bool
    function: Function | None = None

    @property
    def address(self) -> str:
        """A URI, or a function's ARN."""
        return self.uri if self.function is None else self.function.arn


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsPatch:
    """An operator's change to a service; None leaves a setting as it is. Durations in ms."""

    public: bool | None = None
    idempotency_retention_ms: int | None = None
    workflow_completion_retention_ms: int | None = None
    journal_retention_ms: int | None = None
    inactivity_timeout_ms: int | None = None
    abort_timeout_ms: int | None = None


def normalize_uri(uri: str) -> str:
    """The URI as stored: absolute, http or https, with a path.

    Raises:
        BadRequest: not such a URI.
    """
    if len(uri) > _URI_LENGTH_MAX or not uri.isascii() or any(c <= " " for c in uri):
        raise BadRequest(f"uri: {_URI_LENGTH_MAX} printable ASCII letters at most, percent-encoded")
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise BadRequest(f"uri {uri!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(f"uri {uri!r} is not absolute: give http(s)://host[:port][/path]")
    if parts.username is not None:
        raise BadRequest("uri: credentials belong into additional_headers (authorization)")
    return urlunsplit((parts.scheme, parts.netloc, parts.path or "/", parts.query, ""))


def check_arn(arn: str) -> str:
    """The ARN of a function's version or alias.

    Raises:
        BadRequest: not such an ARN.
    """
    if not _FUNCTION_ARN.fullmatch(arn):
        raise BadRequest(
            f"arn {arn!r}: give arn:aws:lambda:REGION:ACCOUNT:function:NAME:VERSION, where VERSION "
            "may be an alias; for the unpublished version write $LATEST (mind the shell's quotes)"
        )
    return arn


def check_role_arn(arn: str) -> str:
    """The ARN of a role.

    Raises:
        BadRequest: not such an ARN.
    """
    if not _ROLE_ARN.fullmatch(arn):
        raise BadRequest(f"assume_role_arn {arn!r}: give arn:aws:iam::ACCOUNT:role/NAME")
    return arn


def find_by_address(registry: Registry, address: str) -> Deployment | None:
    """The deployment at the same authority and path (the scheme doesn't count), or of that ARN."""
    wanted = _address(address)
    for deployment in registry.deployments.values():
        if _address(deployment.address) == wanted:
            return deployment
    return None


def register(registry: Registry, candidate: Candidate) -> Registered:
    """Add the endpoint; at a known address, overwrite the deployment or leave it as it is.

    Raises:
        ServiceTypeChanged: a known service has another type now, and breaking is not allowed.
    """
    known = find_by_address(registry, candidate.address)
    if known is not None and not candidate.overwrites:
        return Registered(registry, known, Change.UNCHANGED)
    services: dict[str, Service] = {}
    for service in candidate.discovered.services:
        latest = registry.service(service.name)
        if not candidate.allows_breaking:
            _check_type(latest, service)
        revision = latest.revision + 1 if latest is not None else 1
        services[service.name] = msgspec.structs.replace(service, revision=revision)
    deployment = Deployment(
        id=known.id if known is not None else candidate.id,
        uri=candidate.uri,
        http_version=candidate.http_version,
        is_bidirectional=candidate.discovered.is_bidirectional,
        protocol_version_min=candidate.discovered.protocol_version_min,
        protocol_version_max=candidate.discovered.protocol_version_max,
        created_at_ms=candidate.created_at_ms,
        services=services,
        sdk_version=candidate.discovered.sdk_version,
        headers=candidate.headers,
        metadata=candidate.metadata,
        function=_as_discovered(candidate.function, candidate.discovered),
    )
    change = Change.CREATED if known is None else Change.OVERWRITTEN
    claimed = dict.fromkeys(services, deployment.id)
    return Registered(_install(registry, deployment, claimed), deployment, change)


def update_deployment(
    registry: Registry, deployment_id: str, update: Update
) -> tuple[Registry, Deployment]:
    """Move a deployment, or change how it is called; its id, age and metadata stay.

    Raises:
        DeploymentNotFound: there is none of this id.
        IncompatibleUpdate: what is there now speaks other protocol versions.
        ServiceTypeChanged: overwriting would change a service's type.
        BadRequest: another deployment is at the new address.
    """
    known = registry.deployments.get(deployment_id)
    if known is None:
        raise DeploymentNotFound(f"there is no deployment {deployment_id}")
    there = find_by_address(registry, update.address)
    if there is not None and there.id != deployment_id:
        raise BadRequest(f"deployment {there.id} is registered at {update.address} already")
    discovered = update.discovered
    spoken = (discovered.protocol_version_min, discovered.protocol_version_max)
    expected = (known.protocol_version_min, known.protocol_version_max)
    if spoken != expected:
        raise IncompatibleUpdate(
            f"{update.address} speaks protocol {spoken[0]} to {spoken[1]}, deployment "
            f"{deployment_id} {expected[0]} to {expected[1]}: register it as a new deployment"
        )
    services, claimed = known.services, dict[str, str]()
    if update.overwrites:
        services, claimed = _overwritten(registry, known, discovered)
    deployment = msgspec.structs.replace(
        known,
        uri=update.uri,
        http_version=update.http_version,
        is_bidirectional=discovered.is_bidirectional,
        headers=update.headers,
        sdk_version=discovered.sdk_version,
        services=services,
        function=_as_discovered(update.function, discovered),
    )
    return _install(registry, deployment, claimed), deployment


def remove_deployment(registry: Registry, deployment_id: str) -> Registry:
    """Forget a deployment; services whose latest revision lived there are gone with it.

    Raises:
        DeploymentNotFound: there is none of this id.
    """
    if deployment_id not in registry.deployments:
        raise DeploymentNotFound(f"there is no deployment {deployment_id}")
    deployments = {k: d for k, d in registry.deployments.items() if k != deployment_id}
    latest = {name: at for name, at in registry.latest.items() if at != deployment_id}
    return Registry(deployments, latest)


def patch_service(registry: Registry, name: str, patch: SettingsPatch) -> tuple[Registry, Service]:
    """Change settings of a service's latest revision; revision and deployment stay.

    Raises:
        ServiceNotFound: no such service.
        BadRequest: a workflow's setting on something else.
    """
    service = registry.service(name)
    if service is None:
        raise ServiceNotFound(f"there is no service {name!r}")
    retention = patch.workflow_completion_retention_ms
    if retention is not None and service.type is not ServiceType.WORKFLOW:
        raise BadRequest(f"{name!r} is not a workflow: it has no workflow_completion_retention")
    options = _patched(service.options, patch)
    public = service.public if patch.public is None else patch.public
    handlers = service.handlers
    if retention is not None:
        handlers = {known: _without_retention(h) for known, h in handlers.items()}
    changed = msgspec.structs.replace(service, options=options, public=public, handlers=handlers)
    deployment = registry.deployments[registry.latest[name]]
    deployment = msgspec.structs.replace(
        deployment, services={**deployment.services, name: changed}
    )
    deployments = {**registry.deployments, deployment.id: deployment}
    return Registry(deployments, registry.latest), changed


def _check_type(latest: Service | None, service: Service) -> None:
    if latest is not None and latest.type is not service.type:
        raise ServiceTypeChanged(
            f"service {service.name!r} is a {latest.type.value} and would become a "
            f"{service.type.value}: choose another name, or register with breaking=true"
        )


def _install(registry: Registry, deployment: Deployment, claimed: dict[str, str]) -> Registry:
    """Put the deployment in; services that it had and no longer has fall back to older ones."""
    deployments = {**registry.deployments, deployment.id: deployment}
    latest = {**registry.latest, **claimed}
    gone = [
        name
        for name, at in latest.items()
        if at == deployment.id and name not in deployment.services
    ]
    return Registry(deployments, _with_fallback(deployments, latest, gone))


def _overwritten(
    registry: Registry, known: Deployment, discovered: Discovered
) -> tuple[dict[str, Service], dict[str, str]]:
    services: dict[str, Service] = {}
    claimed: dict[str, str] = {}
    for service in discovered.services:
        latest = registry.service(service.name)
        own = known.services.get(service.name)
        _check_type(latest, service)
        if own is not None:
            revision = own.revision
        else:
            revision = latest.revision + 1 if latest is not None else 1
            claimed[service.name] = known.id
        services[service.name] = msgspec.structs.replace(service, revision=revision)
    return services, claimed


def _without_retention(handler: Handler) -> Handler:
    """The operator's word for the service counts, not the manifest's for its run handler."""
    options = msgspec.structs.replace(handler.options, workflow_completion_retention_ms=None)
    return msgspec.structs.replace(handler, options=options)


def _patched(options: Options, patch: SettingsPatch) -> Options:
    changes = {
        field: value
        for field in (
            "idempotency_retention_ms",
            "workflow_completion_retention_ms",
            "journal_retention_ms",
            "inactivity_timeout_ms",
            "abort_timeout_ms",
        )
        if (value := getattr(patch, field)) is not None
    }
    return msgspec.structs.replace(options, **changes)


def _with_fallback(
    deployments: dict[str, Deployment], latest: dict[str, str], gone: list[str]
) -> dict[str, str]:
    found = {name: at for name, at in latest.items() if name not in gone}
    for name in gone:
        carriers = [d for d in deployments.values() if name in d.services]
        if carriers:
            newest = max(carriers, key=lambda d: d.services[name].revision)
            found[name] = newest.id
    return found


def _as_discovered(function: Function | None, discovered: Discovered) -> Function | None:
    if function is None:
        return None
    return msgspec.structs.replace(function, compression=discovered.lambda_compression)


def _address(uri: str) -> tuple[str, str]:
    if uri.startswith("arn:"):
        return "", uri
    parts = urlsplit(uri)
    return parts.netloc.lower(), parts.path.rstrip("/")
