"""How the registry changes: registration, removal, settings. Pure: registry in, registry out."""

from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import msgspec

from perdure.core.errors import (
    BadRequest,
    DeploymentNotFound,
    ServiceNotFound,
    ServiceTypeChanged,
)
from perdure.node.registry.manifest import Discovered
from perdure.node.registry.model import Deployment, Options, Registry, Service, ServiceType


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An endpoint that was discovered and is to be registered."""

    id: str
    uri: str
    http_version: str
    discovered: Discovered
    headers: dict[str, str]
    metadata: dict[str, str]
    created_at_ms: int
    allows_breaking: bool


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
    parts = urlsplit(uri)
    try:
        _ = parts.port
    except ValueError as error:
        raise BadRequest(f"uri {uri!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(f"uri {uri!r} is not absolute: give http(s)://host[:port][/path]")
    return urlunsplit((parts.scheme, parts.netloc, parts.path or "/", parts.query, ""))


def find_by_address(registry: Registry, uri: str) -> Deployment | None:
    """The deployment at the same authority and path; the scheme doesn't count."""
    wanted = _address(uri)
    for deployment in registry.deployments.values():
        if _address(deployment.uri) == wanted:
            return deployment
    return None


def register(registry: Registry, candidate: Candidate) -> tuple[Registry, Deployment, bool]:
    """Add the endpoint, or overwrite the deployment at its address; True when it is new.

    Raises:
        ServiceTypeChanged: a known service has another type now, and breaking is not allowed.
    """
    known = find_by_address(registry, candidate.uri)
    services: dict[str, Service] = {}
    for service in candidate.discovered.services:
        latest = registry.service(service.name)
        if latest is not None and latest.type != service.type and not candidate.allows_breaking:
            raise ServiceTypeChanged(
                f"service {service.name!r} is a {latest.type.value} and would become a "
                f"{service.type.value}: choose another name, or register with breaking=true"
            )
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
    )
    deployments = {**registry.deployments, deployment.id: deployment}
    latest = {**registry.latest, **dict.fromkeys(services, deployment.id)}
    if known is not None:
        # Services that the overwritten deployment no longer has fall back to an older revision.
        gone = [name for name, at in latest.items() if at == known.id and name not in services]
        latest = _with_fallback(deployments, latest, gone)
    return Registry(deployments, latest), deployment, known is None


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
    changed = msgspec.structs.replace(service, options=options, public=public)
    deployment = registry.deployments[registry.latest[name]]
    deployment = msgspec.structs.replace(
        deployment, services={**deployment.services, name: changed}
    )
    deployments = {**registry.deployments, deployment.id: deployment}
    return Registry(deployments, registry.latest), changed


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


def _address(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc.lower(), parts.path.rstrip("/")
