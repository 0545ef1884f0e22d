"""/services: reading services and handlers, changing a service's settings."""

import msgspec

from perdure.core.errors import ServiceNotFound, Unprocessable
from perdure.core.telemetry import logger
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.openapi import service_document
from perdure.node.admin.requests import Reply, Request, json_reply
from perdure.node.admin.routes import Route
from perdure.node.admin.shapes import Document, handler_shape, service_shape
from perdure.node.config.durations import parse_duration
from perdure.node.registry.evolve import SettingsPatch, patch_service
from perdure.node.registry.model import Deployment, Registry, Service

log = logger("admin")


class ServiceSettings(msgspec.Struct):
    """Durations like `1h 30m` or `PT90M`; what isn't mentioned stays."""

    public: bool | None = None
    idempotency_retention: str | None = None
    workflow_completion_retention: str | None = None
    journal_retention: str | None = None
    inactivity_timeout: str | None = None
    abort_timeout: str | None = None


async def list_services(context: Context, request: Request) -> Reply:
    """The latest revision of every service, by name."""
    registry = context.registry.registry
    found = [_shape(context, *_find(registry, name)) for name in sorted(registry.latest)]
    return json_reply(200, {"services": found})


async def get_service(context: Context, request: Request) -> Reply:
    """The latest revision of one service."""
    found = _find(context.registry.registry, request.parameters["service"])
    return json_reply(200, _shape(context, *found))


async def change_service(context: Context, request: Request) -> Reply:
    """Change settings; what isn't mentioned, or null, stays."""
    name = request.parameters["service"]
    patch = _settings(request.json(ServiceSettings))
    if patch == SettingsPatch():
        return await get_service(context, request)
    changed = await context.registry.change(
        lambda registry: patch_service(registry, name, patch)[0]
    )
    log.info("admin.service.changed", service=name)
    return json_reply(200, _shape(context, *_find(changed, name)))


async def get_openapi(context: Context, request: Request) -> Reply:
    """How to call the service through the ingress, as OpenAPI 3.1."""
    service, _ = _find(context.registry.registry, request.parameters["service"])
    return json_reply(200, service_document(service, context.options.ingress_url))


async def list_handlers(context: Context, request: Request) -> Reply:
    """The handlers of a service's latest revision."""
    service, deployment = _find(context.registry.registry, request.parameters["service"])
    handlers = [handler_shape(h, service, deployment) for h in service.handlers.values()]
    return json_reply(200, {"handlers": handlers})


async def get_handler(context: Context, request: Request) -> Reply:
    """One handler."""
    name = request.parameters["handler"]
    service, deployment = _find(context.registry.registry, request.parameters["service"])
    handler = service.handlers.get(name)
    if handler is None:
        raise ServiceNotFound(f"service {service.name!r} has no handler {name!r}")
    return json_reply(200, handler_shape(handler, service, deployment))


def _find(registry: Registry, name: str) -> tuple[Service, Deployment]:
    service = registry.service(name)
    if service is None:
        raise ServiceNotFound(f"there is no service {name!r}")
    return service, registry.deployments[registry.latest[name]]


def _shape(context: Context, service: Service, deployment: Deployment) -> Document:
    return service_shape(service, deployment, context.registry.catalogue.defaults)


def _settings(body: ServiceSettings) -> SettingsPatch:
    return SettingsPatch(
        public=body.public,
        idempotency_retention_ms=_duration(body.idempotency_retention),
        workflow_completion_retention_ms=_duration(body.workflow_completion_retention),
        journal_retention_ms=_duration(body.journal_retention),
        inactivity_timeout_ms=_duration(body.inactivity_timeout),
        abort_timeout_ms=_duration(body.abort_timeout),
    )


def _duration(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise Unprocessable(f"duration {text!r}: {error}") from error


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/services", list_services),
    Route("GET", "/services/{service}", get_service),
    Route("PATCH", "/services/{service}", change_service, ServiceSettings),
    Route("GET", "/services/{service}/openapi", get_openapi),
    Route("GET", "/services/{service}/handlers", list_handlers),
    Route("GET", "/services/{service}/handlers/{handler}", get_handler),
]
