"""/deployments: registration with discovery, reading, update, removal."""

from typing import Annotated, Any

import msgspec

from perdure.core.entropy import ulid
from perdure.core.errors import (
    BadRequest,
    Conflict,
    DeploymentNotFound,
    MethodNotAllowed,
    NotImplementedHere,
    Unprocessable,
)
from perdure.core.ids import format_deployment_id
from perdure.core.telemetry import logger
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.requests import (
    Reply,
    Request,
    check_deployment_id,
    json_reply,
)
from perdure.node.admin.routes import Route
from perdure.node.admin.shapes import deployment_detail, deployment_item, registration
from perdure.node.registry import discovery as endpoints
from perdure.node.registry.discovery import HTTP_1
from perdure.node.registry.discovery import Endpoint as Served
from perdure.node.registry.evolve import (
    Candidate,
    Change,
    Registered,
    Update,
    check_arn,
    check_role_arn,
    find_by_address,
    normalize_uri,
    register,
    update_deployment,
)
from perdure.node.registry.model import Deployment, Function, Registry

log = logger("admin")

# In this version of the API registering overwrote unless told otherwise.
_FORCING_VERSION = 2
_Text = Annotated[str, msgspec.Meta(max_length=4096)]


class Registration(msgspec.Struct):
    """An endpoint to discover: an HTTP one by `uri`, an AWS Lambda function by `arn`."""

    uri: str | None = None
    arn: str | None = None
    assume_role_arn: str | None = None
    additional_headers: dict[str, str] | None = None
    metadata: dict[_Text, _Text] | None = None
    use_http_11: bool = False
    breaking: bool = False
    force: bool | None = None
    dry_run: bool = False
    auth: Any = None


class DeploymentUpdate(msgspec.Struct):
    """What to change; what isn't mentioned stays."""

    uri: str | None = None
    arn: str | None = None
    assume_role_arn: str | None = None
    additional_headers: dict[str, str] | None = None
    use_http_11: bool | None = None
    overwrite: bool = False
    dry_run: bool = False


async def list_deployments(context: Context, request: Request) -> Reply:
    """All deployments, oldest first."""
    found = sorted(
        context.registry.registry.deployments.values(), key=lambda d: (d.created_at_ms, d.id)
    )
    return json_reply(200, {"deployments": [deployment_item(deployment) for deployment in found]})


async def get_deployment(context: Context, request: Request) -> Reply:
    """One deployment, with the services in the revisions it carries."""
    deployment = _find(context.registry.registry, check_deployment_id(request.parameters["id"]))
    return json_reply(200, deployment_detail(deployment, context.registry.catalogue.defaults))


async def register_deployment(context: Context, request: Request) -> Reply:
    """Discover an endpoint and register what it offers; known ones are left alone unless forced."""
    body = request.json(Registration)
    served = _endpoint(body)
    is_forced = request.version == _FORCING_VERSION if body.force is None else body.force
    known = find_by_address(context.registry.registry, served.address)
    if known is not None and not is_forced:
        return _registered(context, request, known, Change.UNCHANGED)
    found = await context.discovery.discover(served)
    now_ms = context.clock.now_ms()
    candidate = Candidate(
        id=format_deployment_id(ulid(now_ms, context.entropy)),
        uri=served.uri,
        http_version=found.http_version,
        discovered=found.discovered,
        headers=served.headers,
        metadata=body.metadata or {},
        created_at_ms=now_ms,
        allows_breaking=body.breaking or is_forced,
        overwrites=is_forced,
        function=served.function,
    )
    if body.dry_run:
        outcome = register(context.registry.registry, candidate)
    else:
        outcome = await _store(context, candidate)
    return _registered(context, request, outcome.deployment, outcome.change)


async def patch_deployment(context: Context, request: Request) -> Reply:
    """Move a deployment, change its headers, or take over what it offers now."""
    if request.method == "PUT" and request.version != _FORCING_VERSION:
        raise MethodNotAllowed("update deployments with PATCH")
    deployment_id = check_deployment_id(request.parameters["id"])
    body = request.json(DeploymentUpdate)
    known = _find(context.registry.registry, deployment_id)
    defaults = context.registry.catalogue.defaults
    if _changes_nothing(body):
        return json_reply(200, deployment_detail(known, defaults))
    served = _moved(known, body)
    found = await context.discovery.discover(served)
    update = Update(
        uri=served.uri,
        http_version=found.http_version,
        headers=served.headers,
        discovered=found.discovered,
        overwrites=body.overwrite,
        function=served.function,
    )

    def edit(registry: Registry) -> Registry:
        return update_deployment(registry, deployment_id, update)[0]

    if body.dry_run:
        changed = edit(context.registry.registry)
    else:
        changed = await context.registry.change(edit)
        log.info("admin.deployment.updated", id=deployment_id, address=served.address)
    return json_reply(200, deployment_detail(changed.deployments[deployment_id], defaults))


def _endpoint(body: Registration) -> Served:
    if body.uri is None and body.arn is None:
        raise Unprocessable("the body doesn't fit: it needs a `uri` or an `arn`")
    if body.uri is not None and body.arn is not None:
        raise BadRequest("a deployment is at a `uri` or an `arn`, not at both")
    if body.auth is not None:
        raise NotImplementedHere("`auth` is not supported: use additional_headers (authorization)")
    headers = endpoints.check_headers(body.additional_headers or {})
    if body.arn is not None:
        return Served(function=_function(body.arn, body.assume_role_arn), headers=headers)
    assert body.uri is not None
    return Served(uri=normalize_uri(body.uri), use_http_11=body.use_http_11, headers=headers)


def _function(arn: str, assume_role_arn: str | None) -> Function:
    role = None if assume_role_arn is None else check_role_arn(assume_role_arn)
    return Function(check_arn(arn), role)


def _changes_nothing(body: DeploymentUpdate) -> bool:
    changes = (
        body.uri,
        body.arn,
        body.assume_role_arn,
        body.additional_headers,
        body.use_http_11,
    )
    return all(change is None for change in changes)


def _moved(known: Deployment, body: DeploymentUpdate) -> Served:
    """Where the deployment is after the change."""
    if body.uri is not None and body.arn is not None:
        raise BadRequest("a deployment is at a `uri` or an `arn`, not at both")
    headers = known.headers
    if body.additional_headers is not None:
        headers = endpoints.check_headers(body.additional_headers)
    function = known.function
    if body.arn is not None or (body.uri is None and function is not None):
        if body.use_http_11 is not None:
            raise BadRequest("`use_http_11` doesn't fit: AWS Lambda functions aren't called so")
        role = function.assume_role_arn if function is not None else None
        arn = body.arn if body.arn is not None else known.address
        return Served(function=_function(arn, body.assume_role_arn or role), headers=headers)
    if body.assume_role_arn is not None:
        raise BadRequest(f"deployment {known.id} is no AWS Lambda function: it assumes no role")
    uses_http_11 = known.http_version == HTTP_1 if body.use_http_11 is None else body.use_http_11
    uri = known.uri if body.uri is None else normalize_uri(body.uri)
    return Served(uri=uri, use_http_11=uses_http_11, headers=headers)


def _find(registry: Registry, deployment_id: str) -> Deployment:
    deployment = registry.deployments.get(deployment_id)
    if deployment is None:
        raise DeploymentNotFound(f"there is no deployment {deployment_id}")
    return deployment


async def _store(context: Context, candidate: Candidate) -> Registered:
    outcome: Registered | None = None

    def edit(registry: Registry) -> Registry:
        nonlocal outcome
        outcome = register(registry, candidate)
        return outcome.registry

    await context.registry.change(edit)
    assert outcome is not None
    log.info(
        "admin.deployment.registered",
        id=outcome.deployment.id,
        address=outcome.deployment.address,
        services=",".join(outcome.deployment.services),
        change=outcome.change.value,
    )
    return outcome


def _registered(
    context: Context, request: Request, deployment: Deployment, change: Change
) -> Reply:
    is_old = request.version == _FORCING_VERSION
    if is_old and change is Change.UNCHANGED:
        raise Conflict(
            f"{deployment.address} is registered as {deployment.id}: `force` registers it anew"
        )
    status = {
        Change.CREATED: 201,
        Change.UNCHANGED: 200,
        Change.OVERWRITTEN: 201 if is_old else 200,
    }[change]
    document = registration(deployment, context.registry.catalogue.defaults)
    location = (b"location", f"deployments/{deployment.id}".encode())
    return json_reply(status, document, location)


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/deployments", list_deployments),
    Route("POST", "/deployments", register_deployment, Registration),
    Route("GET", "/deployments/{id}", get_deployment),
    Route("PATCH", "/deployments/{id}", patch_deployment, DeploymentUpdate),
    Route("PUT", "/deployments/{id}", patch_deployment, DeploymentUpdate),
]
