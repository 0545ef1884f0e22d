"""Deployments, services and handlers in the shapes that clients of the admin API know. Pure.

What is not set is left out, but for the few keys that clients expect even when null.
"""

from typing import Any, cast

import msgspec

from perdure.core.retry import RetryPolicy
from perdure.node.admin.requests import moment
from perdure.node.config.durations import format_duration
from perdure.node.registry.effective import Defaults, effective
from perdure.node.registry.model import (
    Deployment,
    Handler,
    InputRules,
    OnMaxAttempts,
    OutputRules,
    RetryOptions,
    Service,
    ServiceType,
)
from perdure.storage.tables.invocations import HandlerKind

Document = dict[str, Any]

_HANDLER_TYPES = {
    HandlerKind.EXCLUSIVE: "Exclusive",
    HandlerKind.SHARED: "Shared",
    HandlerKind.WORKFLOW_RUN: "Workflow",
    HandlerKind.WORKFLOW_SHARED: "Shared",
}
# A handler that says nothing inherits everything: its settings are its service's.
_PLAIN = Handler(
    name="plain", kind=HandlerKind.SERVICE, input=InputRules(is_open=True), output=OutputRules()
)
_INACTIVITY_IGNORED = "RT0021"
_RETENTION_CLAMPED = "RT0022"


def deployment_item(deployment: Deployment) -> Document:
    """A deployment in a list: its services by name and revision."""
    services = [
        {"name": service.name, "revision": service.revision}
        for service in deployment.services.values()
    ]
    return _deployment(deployment, services)


def deployment_detail(deployment: Deployment, defaults: Defaults) -> Document:
    """A deployment with its services in full, in the revisions it carries."""
    return _deployment(deployment, services_of(deployment, defaults))


def registration(deployment: Deployment, defaults: Defaults) -> Document:
    """What registering answers."""
    document: Document = {
        "id": deployment.id,
        "services": services_of(deployment, defaults),
        "min_protocol_version": deployment.protocol_version_min,
        "max_protocol_version": deployment.protocol_version_max,
    }
    if deployment.sdk_version is not None:
        document["sdk_version"] = deployment.sdk_version
    return document


def services_of(deployment: Deployment, defaults: Defaults) -> list[Document]:
    """The services of a deployment in full."""
    return [
        service_shape(service, deployment, defaults) for service in deployment.services.values()
    ]


def service_shape(service: Service, deployment: Deployment, defaults: Defaults) -> Document:
    """A service: what was said of it, and what holds where nothing was."""
    options = service.options
    settings = effective(defaults, service, _PLAIN)
    lazy = bool(options.lazy_state)
    inactivity = settings.inactivity_timeout_ms if deployment.is_bidirectional else 0
    document: Document = {
        "name": service.name,
        "ty": service.type.value,
        "handlers": [
            handler_shape(handler, service, deployment) for handler in service.handlers.values()
        ],
        **_described(service),
        "deployment_id": deployment.id,
        "revision": service.revision,
        "public": service.public,
        "idempotency_retention": format_duration(settings.completion_retention_ms),
    }
    if service.type is ServiceType.WORKFLOW:
        retention = _workflow_retention(service, defaults)
        document["workflow_completion_retention"] = format_duration(retention)
    document["journal_retention"] = format_duration(settings.journal_retention_ms)
    document["inactivity_timeout"] = format_duration(inactivity)
    document["abort_timeout"] = format_duration(settings.abort_timeout_ms)
    document["enable_lazy_state"] = lazy
    document["retry_policy"] = _retry_in_effect(settings.retry, settings.on_max_attempts)
    remarks = _remarks(service, deployment, defaults)
    if remarks:
        document["info"] = remarks
    return document


def handler_shape(handler: Handler, service: Service, deployment: Deployment) -> Document:
    """A handler: only what was said of it, not what it inherits."""
    options = handler.options
    document: Document = {"name": handler.name}
    if handler.kind in _HANDLER_TYPES:
        document["ty"] = _HANDLER_TYPES[HandlerKind(handler.kind)]
    document.update(_described(handler))
    durations = {
        "idempotency_retention": options.idempotency_retention_ms,
        "journal_retention": options.journal_retention_ms,
        "inactivity_timeout": (
            options.inactivity_timeout_ms if deployment.is_bidirectional else None
        ),
        "abort_timeout": options.abort_timeout_ms,
    }
    document.update(
        {name: format_duration(value) for name, value in durations.items() if value is not None}
    )
    if options.lazy_state is not None:
        document["enable_lazy_state"] = options.lazy_state
    document["public"] = service.public and handler.public is not False
    document["input_description"] = describe_input(handler)
    document["output_description"] = describe_output(handler)
    if handler.input.json_schema is not None:
        document["input_json_schema"] = msgspec.Raw(handler.input.json_schema)
    if handler.output.json_schema is not None:
        document["output_json_schema"] = msgspec.Raw(handler.output.json_schema)
    document["retry_policy"] = _retry_as_said(options.retry)
    if options.inactivity_timeout_ms is not None and not deployment.is_bidirectional:
        document["info"] = [_inactivity_remark(options.inactivity_timeout_ms)]
    return document


def describe_input(handler: Handler) -> str:
    """What a handler takes, in a word or two."""
    rules = handler.input
    if rules.is_open:
        return "*/*"
    if rules.content_type is None:
        return "none"
    return _schema_words(rules.json_schema) or rules.content_type


def describe_output(handler: Handler) -> str:
    """What a handler gives, in a word or two."""
    rules = handler.output
    if rules.content_type is None:
        return "none"
    words = _schema_words(rules.json_schema)
    if words is None and rules.sets_content_type_if_empty:
        return f"optional {rules.content_type}"
    return words or rules.content_type


def _deployment(deployment: Deployment, services: list[Document]) -> Document:
    document: Document = {"id": deployment.id, **_whereabouts(deployment)}
    if deployment.headers:
        document["additional_headers"] = deployment.headers
    if deployment.metadata:
        document["metadata"] = deployment.metadata
    document["created_at"] = moment(deployment.created_at_ms)
    document["min_protocol_version"] = deployment.protocol_version_min
    document["max_protocol_version"] = deployment.protocol_version_max
    if deployment.sdk_version is not None:
        document["sdk_version"] = deployment.sdk_version
    document["services"] = services
    return document


def _whereabouts(deployment: Deployment) -> Document:
    function = deployment.function
    if function is None:
        return {
            "uri": deployment.uri,
            "protocol_type": "BidiStream" if deployment.is_bidirectional else "RequestResponse",
            "http_version": deployment.http_version,
        }
    document: Document = {"arn": function.arn}
    if function.assume_role_arn is not None:
        document["assume_role_arn"] = function.assume_role_arn
    if function.compression is not None:
        document["compression"] = function.compression.capitalize()
    return document


def _described(item: Service | Handler) -> Document:
    document: Document = {}
    if item.documentation is not None:
        document["documentation"] = item.documentation
    if item.metadata:
        document["metadata"] = item.metadata
    return document


def _workflow_retention(service: Service, defaults: Defaults) -> int:
    for handler in service.handlers.values():
        if handler.kind == HandlerKind.WORKFLOW_RUN:
            return effective(defaults, service, handler).completion_retention_ms
    stated = service.options.workflow_completion_retention_ms
    retention = defaults.workflow_completion_retention_ms if stated is None else stated
    maximum = defaults.workflow_completion_retention_ms_max
    return retention if maximum is None else min(retention, maximum)


def _retry_in_effect(policy: RetryPolicy, on_max_attempts: OnMaxAttempts) -> Document:
    interval = policy.interval_ms_max
    return {
        "initial_interval": format_duration(int(policy.initial_ms)),
        "exponentiation_factor": float(policy.factor),
        "max_attempts": None if policy.attempts_max is None else max(policy.attempts_max, 1),
        "max_interval": None if interval is None else format_duration(int(interval)),
        "on_max_attempts": on_max_attempts.value,
    }


def _retry_as_said(options: RetryOptions) -> Document:
    document: Document = {}
    if options.initial_interval_ms is not None:
        document["initial_interval"] = format_duration(options.initial_interval_ms)
    if options.factor is not None:
        document["exponentiation_factor"] = options.factor
    attempts = options.attempts_max
    document["max_attempts"] = None if attempts is None else max(attempts, 1)
    if options.interval_ms_max is not None:
        document["max_interval"] = format_duration(options.interval_ms_max)
    if options.on_max_attempts is not None:
        document["on_max_attempts"] = options.on_max_attempts.value
    return document


def _remarks(service: Service, deployment: Deployment, defaults: Defaults) -> list[Document]:
    remarks: list[Document] = []
    options = service.options
    if options.inactivity_timeout_ms is not None and not deployment.is_bidirectional:
        remarks.append(_inactivity_remark(options.inactivity_timeout_ms))
    for name, stated, maximum in (
        ("idempotency_retention", options.idempotency_retention_ms, "idempotency_retention_ms_max"),
        ("journal_retention", options.journal_retention_ms, "journal_retention_ms_max"),
    ):
        limit: int | None = getattr(defaults, maximum)
        if stated is not None and limit is not None and stated > limit:
            message = (
                f"{name} {format_duration(stated)} exceeds the server's maximum: "
                f"{format_duration(limit)} applies"
            )
            remarks.append({"code": _RETENTION_CLAMPED, "message": message})
    return remarks


def _inactivity_remark(stated_ms: int) -> Document:
    message = (
        f"inactivity_timeout {format_duration(stated_ms)} has no effect: "
        "the deployment is called in request/response mode"
    )
    return {"code": _INACTIVITY_IGNORED, "message": message}


def _schema_words(schema: bytes | None) -> str | None:
    parsed: object = msgspec.json.decode(schema) if schema is not None else None
    if not isinstance(parsed, dict):
        return None
    members = cast("dict[str, object]", parsed)
    title, kind = members.get("title"), members.get("type")
    if isinstance(title, str):
        return f"JSON '{title}'"
    return f"JSON {kind}" if isinstance(kind, str) else None
