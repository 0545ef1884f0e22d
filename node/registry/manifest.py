"""The discovery manifest: parsed, validated, turned into services. Pure.

Unknown fields are ignored: SDKs are newer than servers. What is there and wrong is refused with
the place and the reason (spec 1.2).
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import msgspec

from perdure.core.errors import (
    BadManifest,
    InvalidRegistration,
    ProtocolRangeUnsupported,
    ReservedServiceName,
)
from perdure.core.limits import NAME_BYTES_MAX
from perdure.node.registry.model import (
    Handler,
    InputRules,
    OnMaxAttempts,
    Options,
    OutputRules,
    RetryOptions,
    Service,
    ServiceType,
)
from perdure.storage.tables.invocations import HandlerKind

PROTOCOL_VERSION_MIN = 5
PROTOCOL_VERSION_MAX = 7
MANIFEST_TYPES = tuple(
    f"application/vnd.restate.endpointmanifest.v{version}+json" for version in range(1, 5)
)
_SERVICE_NAME = re.compile(r"^([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9._-]*$")
_HANDLER_NAME = re.compile(r"^([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9_]*$")
_CONTENT_TYPE = re.compile(r"^[^\s/;]+/[^\s/;]+(\s*;.*)?$")
_OUTDATED_SDK = re.compile(r"^restate-sdk-typescript/1\.[012]\.")

# For ever, in a way that still makes a date when it is added to one.
_DURATION_MS_MAX = 100 * 366 * 24 * 3600 * 1000
# Keywords of JSON schemas that hold values, not schemas.
_SCHEMA_VALUES = frozenset({"const", "default", "enum", "examples"})

_ServiceWord = Literal["SERVICE", "VIRTUAL_OBJECT", "WORKFLOW"]
_HandlerWord = Literal["WORKFLOW", "EXCLUSIVE", "SHARED"]
_Millis = Annotated[int, msgspec.Meta(ge=0)] | None
_Attempts = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None
_Factor = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None


class _Settings(msgspec.Struct, rename="camel"):
    documentation: str | None = None
    metadata: dict[str, str] | None = None
    ingress_private: bool | None = None
    inactivity_timeout: _Millis = None
    abort_timeout: _Millis = None
    journal_retention: _Millis = None
    idempotency_retention: _Millis = None
    enable_lazy_state: bool | None = None
    retry_policy_initial_interval: _Millis = None
    retry_policy_max_interval: _Millis = None
    retry_policy_max_attempts: _Attempts = None
    retry_policy_exponentiation_factor: _Factor = None
    retry_policy_on_max_attempts: Literal["PAUSE", "KILL"] | None = None


class _Input(msgspec.Struct, rename="camel"):
    required: bool = False
    content_type: str | None = None
    json_schema: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct, rename="camel"):
    content_type: str | None = None
    set_content_type_if_empty: bool = False
    json_schema: msgspec.Raw = msgspec.Raw()


class _Handler(_Settings, kw_only=True, rename="camel"):
    name: str
    ty: _HandlerWord | None = None
    input: _Input | None = None
    output: _Output | None = None
    workflow_completion_retention: _Millis = None


class _Service(_Settings, kw_only=True, rename="camel"):
    name: str
    ty: _ServiceWord
    handlers: list[_Handler]


class _Manifest(msgspec.Struct, rename="camel"):
    min_protocol_version: int
    max_protocol_version: int
    services: list[_Service]
    protocol_mode: Literal["BIDI_STREAM", "REQUEST_RESPONSE"] | None = None
    lambda_compression: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered:
    """What an endpoint offers; revisions are not yet assigned.

    ``lambda_compression``: how bodies may be compressed if it is a function, as far as we can.
    """

    services: tuple[Service, ...]
    is_bidirectional: bool
    protocol_version_min: int
    protocol_version_max: int
    sdk_version: str | None
    lambda_compression: str | None = None


def parse_manifest(body: bytes, sdk_version: str | None) -> Discovered:
    """Read and validate a manifest.

    Raises:
        BadManifest: not a manifest, or an incomplete one.
        ProtocolRangeUnsupported: no common protocol version.
        ReservedServiceName, InvalidRegistration: a service that can't be served.
    """
    try:
        manifest = msgspec.json.decode(body, type=_Manifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadManifest(f"the discovery answer is not a valid manifest: {error}") from error
    if manifest.protocol_mode is None:
        raise BadManifest("the manifest doesn't state its protocolMode")
    lower, upper = manifest.min_protocol_version, manifest.max_protocol_version
    if not 1 <= lower <= upper < 1 << 31:
        raise BadManifest(f"the manifest's protocol range {lower}..{upper} is not a range")
    if sdk_version is not None and _OUTDATED_SDK.match(sdk_version):
        upper = 1  # these releases announce more than they speak
    if lower > PROTOCOL_VERSION_MAX or upper < PROTOCOL_VERSION_MIN:
        raise ProtocolRangeUnsupported(
            f"the endpoint speaks service protocol {lower} to {upper}, this server "
            f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}: upgrade the SDK"
        )
    services = tuple(_service(service) for service in manifest.services)
    names = Counter(service.name for service in services)
    for name, count in names.items():
        if count > 1:
            raise BadManifest(f"the manifest lists service {name!r} twice")
    return Discovered(
        services=services,
        is_bidirectional=manifest.protocol_mode == "BIDI_STREAM",
        protocol_version_min=lower,
        protocol_version_max=upper,
        sdk_version=sdk_version,
        lambda_compression=stated if (stated := manifest.lambda_compression) == "zstd" else None,
    )


def _service(stated: _Service) -> Service:
    _check_name(stated.name, _SERVICE_NAME, "service")
    if stated.name.lower().startswith("restate") or stated.name == "openapi":
        raise ReservedServiceName(f"the service name {stated.name!r} is reserved: choose another")
    service_type = _SERVICE_TYPES[stated.ty]
    public = not (stated.ingress_private or False)
    handlers: dict[str, Handler] = {}
    for handler in stated.handlers:
        if handler.name in handlers:
            raise BadManifest(f"service {stated.name!r} lists handler {handler.name!r} twice")
        handlers[handler.name] = _handler(stated, service_type, public, handler)
    return Service(
        name=stated.name,
        type=service_type,
        handlers=handlers,
        public=public,
        options=_options(stated, None),
        documentation=stated.documentation,
        metadata=stated.metadata or {},
    )


def _handler(
    service: _Service, service_type: ServiceType, service_public: bool, stated: _Handler
) -> Handler:
    _check_name(stated.name, _HANDLER_NAME, "handler")
    place = f"{service.name}/{stated.name}"
    kind = _HANDLER_KINDS.get((service.ty, stated.ty))
    if kind is None:
        raise InvalidRegistration(f"{place}: a {service.ty} can't have a handler of {stated.ty}")
    is_run = kind is HandlerKind.WORKFLOW_RUN
    if stated.workflow_completion_retention is not None and not is_run:
        raise InvalidRegistration(
            f"{place}: workflowCompletionRetention is for a workflow's run handler only"
        )
    if stated.idempotency_retention is not None and is_run:
        raise InvalidRegistration(f"{place}: a workflow's run handler has no idempotency keys")
    if stated.ingress_private is False and not service_public:
        raise InvalidRegistration(f"{place}: a private service can't have a public handler")
    return Handler(
        name=stated.name,
        kind=kind,
        input=_input(place, stated.input),
        output=_output(place, stated.output),
        public=None if stated.ingress_private is None else not stated.ingress_private,
        options=_options(stated, stated.workflow_completion_retention),
        documentation=stated.documentation,
        metadata=stated.metadata or {},
    )


def _input(place: str, stated: _Input | None) -> InputRules:
    if stated is None:
        return InputRules(is_open=True)
    _check_content_type(place, stated.content_type)
    return InputRules(
        required=stated.required,
        content_type=stated.content_type,
        json_schema=_schema(place, stated.json_schema),
    )


def _output(place: str, stated: _Output | None) -> OutputRules:
    if stated is None:
        return OutputRules(content_type="application/json")
    _check_content_type(place, stated.content_type)
    return OutputRules(
        content_type=stated.content_type,
        sets_content_type_if_empty=stated.set_content_type_if_empty,
        json_schema=_schema(place, stated.json_schema),
    )


def _options(stated: _Settings, workflow_completion_retention: _Millis) -> Options:
    word = stated.retry_policy_on_max_attempts
    return Options(
        inactivity_timeout_ms=_bounded(stated.inactivity_timeout),
        abort_timeout_ms=_bounded(stated.abort_timeout),
        journal_retention_ms=_bounded(stated.journal_retention),
        idempotency_retention_ms=_bounded(stated.idempotency_retention),
        workflow_completion_retention_ms=_bounded(workflow_completion_retention),
        lazy_state=stated.enable_lazy_state,
        retry=RetryOptions(
            initial_interval_ms=_bounded(stated.retry_policy_initial_interval),
            factor=stated.retry_policy_exponentiation_factor,
            interval_ms_max=_bounded(stated.retry_policy_max_interval),
            attempts_max=stated.retry_policy_max_attempts,
            on_max_attempts=OnMaxAttempts[word] if word is not None else None,
        ),
    )


def _bounded(duration_ms: _Millis) -> int | None:
    return None if duration_ms is None else min(duration_ms, _DURATION_MS_MAX)


def _schema(place: str, raw: msgspec.Raw) -> bytes | None:
    text = bytes(raw)
    if text in (b"", b"null"):
        return None
    schema: object = msgspec.json.decode(text)
    if not isinstance(schema, dict | bool):
        raise InvalidRegistration(f"{place}: a JSON schema is an object or a boolean")
    pending: list[object] = [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            members = cast("dict[str, object]", item)
            reference = members.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise InvalidRegistration(
                    f"{place}: the JSON schema refers to {reference!r}: only references into "
                    "itself (#/…) can be resolved"
                )
            pending.extend(v for name, v in members.items() if name not in _SCHEMA_VALUES)
        elif isinstance(item, list):
            pending.extend(cast("list[object]", item))
    return text


def _check_name(name: str, pattern: re.Pattern[str], what: str) -> None:
    if not pattern.fullmatch(name) or len(name.encode()) > NAME_BYTES_MAX:
        raise BadManifest(f"{name!r} is not a valid {what} name")


def _check_content_type(place: str, content_type: str | None) -> None:
    if content_type is not None and not _CONTENT_TYPE.match(content_type):
        raise InvalidRegistration(f"{place}: {content_type!r} is not a content type")


_SERVICE_TYPES: dict[str, ServiceType] = {
    "SERVICE": ServiceType.SERVICE,
    "VIRTUAL_OBJECT": ServiceType.VIRTUAL_OBJECT,
    "WORKFLOW": ServiceType.WORKFLOW,
}

# Spec 1.2, "Handler type resolution"; what is not listed is refused.
_HANDLER_KINDS: dict[tuple[str, str | None], HandlerKind] = {
    ("SERVICE", None): HandlerKind.SERVICE,
    ("SERVICE", "SHARED"): HandlerKind.SERVICE,
    ("VIRTUAL_OBJECT", None): HandlerKind.EXCLUSIVE,
    ("VIRTUAL_OBJECT", "EXCLUSIVE"): HandlerKind.EXCLUSIVE,
    ("VIRTUAL_OBJECT", "SHARED"): HandlerKind.SHARED,
    ("WORKFLOW", "WORKFLOW"): HandlerKind.WORKFLOW_RUN,
    ("WORKFLOW", None): HandlerKind.WORKFLOW_SHARED,
    ("WORKFLOW", "SHARED"): HandlerKind.WORKFLOW_SHARED,
}
