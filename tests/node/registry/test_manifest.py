"""Manifests: what is accepted, how it is understood, what is refused and as what."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import (
    BadManifest,
    InvalidRegistration,
    PerdureError,
    ProtocolRangeUnsupported,
    ReservedServiceName,
)
from perdure.node.registry.manifest import Discovered, parse_manifest
from perdure.node.registry.model import OnMaxAttempts, RetryOptions, ServiceType
from perdure.storage.tables.invocations import HandlerKind

Document = dict[str, Any]
NOTHING: Document = {}


def service(**fields: object) -> Document:
    return {"name": "Svc", "ty": "SERVICE", "handlers": [{"name": "run"}], **fields}


def manifest(*services: Document, **fields: object) -> bytes:
    document: Document = {
        "protocolMode": "BIDI_STREAM",
        "minProtocolVersion": 5,
        "maxProtocolVersion": 7,
        "services": list(services),
        **fields,
    }
    return json.dumps(
        {name: value for name, value in document.items() if value != "ABSENT"}
    ).encode()


def parse(*services: Document, **fields: object) -> Discovered:
    return parse_manifest(manifest(*services, **fields), None)


@pytest.mark.parametrize(
    ("service_type", "handler_type", "kind"),
    [
        ("SERVICE", None, HandlerKind.SERVICE),
        ("SERVICE", "SHARED", HandlerKind.SERVICE),
        ("SERVICE", "EXCLUSIVE", None),
        ("SERVICE", "WORKFLOW", None),
        ("VIRTUAL_OBJECT", None, HandlerKind.EXCLUSIVE),
        ("VIRTUAL_OBJECT", "EXCLUSIVE", HandlerKind.EXCLUSIVE),
        ("VIRTUAL_OBJECT", "SHARED", HandlerKind.SHARED),
        ("VIRTUAL_OBJECT", "WORKFLOW", None),
        ("WORKFLOW", None, HandlerKind.WORKFLOW_SHARED),
        ("WORKFLOW", "SHARED", HandlerKind.WORKFLOW_SHARED),
        ("WORKFLOW", "WORKFLOW", HandlerKind.WORKFLOW_RUN),
        ("WORKFLOW", "EXCLUSIVE", None),
    ],
)
def test_handler_type_resolution(
    service_type: str, handler_type: str | None, kind: HandlerKind | None
) -> None:
    handler = {"name": "run"} if handler_type is None else {"name": "run", "ty": handler_type}
    stated = service(ty=service_type, handlers=[handler])
    if kind is None:
        with pytest.raises(InvalidRegistration):
            parse(stated)
    else:
        assert parse(stated).services[0].handlers["run"].kind == kind


@pytest.mark.parametrize(
    ("lower", "upper", "error"),
    [
        (5, 7, None),
        (1, 5, None),
        (7, 99, None),
        (1, 4, ProtocolRangeUnsupported),
        (8, 9, ProtocolRangeUnsupported),
        (7, 5, BadManifest),
        (0, 7, BadManifest),
        (5, 1 << 31, BadManifest),
    ],
)
def test_protocol_ranges(lower: int, upper: int, error: type[PerdureError] | None) -> None:
    body = manifest(service(), minProtocolVersion=lower, maxProtocolVersion=upper)
    if error is None:
        found = parse_manifest(body, None)
        assert (found.protocol_version_min, found.protocol_version_max) == (lower, upper)
    else:
        with pytest.raises(error):
            parse_manifest(body, None)


@pytest.mark.parametrize(
    ("sdk", "is_refused"),
    [
        ("restate-sdk-typescript/1.0.1", True),
        ("restate-sdk-typescript/1.2.0", True),
        ("restate-sdk-typescript/1.3.0", False),
        ("restate-sdk-typescript/1.20.0", False),
        ("restate-sdk-python/1.0.0", False),
    ],
)
def test_sdks_that_announce_more_than_they_speak(sdk: str, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(ProtocolRangeUnsupported):
            parse_manifest(manifest(service()), sdk)
    else:
        assert parse_manifest(manifest(service()), sdk).sdk_version == sdk


@pytest.mark.parametrize("name", ["restate", "RestateX", "reSTATE.y", "openapi"])
def test_reserved_names(name: str) -> None:
    with pytest.raises(ReservedServiceName) as caught:
        parse(service(name=name))
    assert caught.value.code == "META0005"


@pytest.mark.parametrize("name", ["A", "a.b-c_d", "_a", "_1", "OpenAPI", "a" * 255])
def test_service_names(name: str) -> None:
    assert parse(service(name=name)).services[0].name == name


@pytest.mark.parametrize("name", ["", "1a", "_", "-a", ".a", "a b", "ä", "a/b", "a\n", "a" * 256])
def test_service_names_that_are_refused(name: str) -> None:
    with pytest.raises(BadManifest):
        parse(service(name=name))


@pytest.mark.parametrize("name", ["", "a.b", "a-b", "1", "run\n", "a" * 256])
def test_handler_names_that_are_refused(name: str) -> None:
    with pytest.raises(BadManifest):
        parse(service(handlers=[{"name": name}]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a": \xff}',
        b'{"services": ' + b"[" * 100_000,
        manifest(service(), protocolMode="ABSENT"),
        manifest(service(), protocolMode="CARRIER_PIGEON"),
        manifest(service(), minProtocolVersion="ABSENT"),
        manifest(service(), services="ABSENT"),
        manifest(service(), service()),
        manifest(service(handlers=[{"name": "a"}, {"name": "a"}])),
        manifest(service(ty="DAEMON")),
        manifest(service(inactivityTimeout=-1)),
        manifest(service(journalRetention="1d")),
        manifest(service(retryPolicyMaxAttempts=-1)),
        manifest(service(retryPolicyExponentiationFactor=0)),
        manifest(service(retryPolicyExponentiationFactor=-2.0)),
        manifest(service(retryPolicyOnMaxAttempts="SHRUG")),
        manifest(service(metadata={"a": 1})),
    ],
)
def test_what_is_not_a_manifest(body: bytes) -> None:
    with pytest.raises(BadManifest):
        parse_manifest(body, None)


@pytest.mark.parametrize(
    "stated",
    [
        service(handlers=[{"name": "a", "workflowCompletionRetention": 1}]),
        service(ty="WORKFLOW", handlers=[{"name": "a", "workflowCompletionRetention": 1}]),
        service(
            ty="WORKFLOW", handlers=[{"name": "a", "ty": "WORKFLOW", "idempotencyRetention": 1}]
        ),
        service(ingressPrivate=True, handlers=[{"name": "a", "ingressPrivate": False}]),
        service(handlers=[{"name": "a", "input": {"contentType": "nonsense"}}]),
        service(handlers=[{"name": "a", "output": {"contentType": "a b/c"}}]),
        service(handlers=[{"name": "a", "input": {"jsonSchema": 5}}]),
        service(handlers=[{"name": "a", "output": {"jsonSchema": {"$ref": "https://x/y"}}}]),
        service(
            handlers=[{"name": "a", "input": {"jsonSchema": {"anyOf": [{"$ref": "other.json"}]}}}]
        ),
    ],
)
def test_declarations_that_cant_be_served(stated: Document) -> None:
    with pytest.raises(InvalidRegistration) as caught:
        parse(stated)
    assert caught.value.http_status == 400
    assert "Svc/a" in caught.value.message


def test_unknown_fields_are_ignored() -> None:
    found = parse(service(novel=1, handlers=[{"name": "run", "novel": NOTHING}]), novel=[])
    assert found.services[0].name == "Svc"


def test_schemas_are_kept_to_the_letter() -> None:
    schema = {"$ref": "#/$defs/X", "$defs": {"X": {"default": {"$ref": "not a reference"}}}}
    (found,) = parse(
        service(
            handlers=[
                {"name": "a", "input": {"contentType": "application/json", "jsonSchema": schema}},
                {"name": "b", "input": {"jsonSchema": None}, "output": {"jsonSchema": True}},
            ]
        )
    ).services
    kept = found.handlers["a"].input.json_schema
    assert kept is not None and json.loads(kept) == schema
    assert found.handlers["b"].input.json_schema is None
    assert found.handlers["b"].output.json_schema == b"true"


def test_defaults_of_input_and_output() -> None:
    (found,) = parse(
        service(
            handlers=[{"name": "open"}, {"name": "closed", "input": NOTHING, "output": NOTHING}]
        )
    ).services
    assert found.handlers["open"].input.is_open
    assert found.handlers["open"].output.content_type == "application/json"
    assert not found.handlers["closed"].input.is_open
    assert found.handlers["closed"].output.content_type is None


def test_every_option_arrives() -> None:
    options: Document = {
        "inactivityTimeout": 1,
        "abortTimeout": 2,
        "journalRetention": 3,
        "idempotencyRetention": 4,
        "enableLazyState": True,
        "retryPolicyInitialInterval": 5,
        "retryPolicyMaxInterval": 6,
        "retryPolicyMaxAttempts": 7,
        "retryPolicyExponentiationFactor": 1.5,
        "retryPolicyOnMaxAttempts": "KILL",
        "documentation": "doc",
        "metadata": {"a": "b"},
        "ingressPrivate": True,
    }
    (found,) = parse(
        service(ty="VIRTUAL_OBJECT", handlers=[{"name": "run", **options}], **options)
    ).services
    assert found.type is ServiceType.VIRTUAL_OBJECT
    for item in (found, found.handlers["run"]):
        assert item.public is False
        assert (item.documentation, item.metadata) == ("doc", {"a": "b"})
        stated = item.options
        assert (stated.inactivity_timeout_ms, stated.abort_timeout_ms) == (1, 2)
        assert (stated.journal_retention_ms, stated.idempotency_retention_ms) == (3, 4)
        assert stated.lazy_state is True
        assert stated.retry == RetryOptions(
            initial_interval_ms=5,
            factor=1.5,
            interval_ms_max=6,
            attempts_max=7,
            on_max_attempts=OnMaxAttempts.KILL,
        )


def test_for_ever_is_a_hundred_years() -> None:
    (found,) = parse(service(journalRetention=(1 << 63) - 1)).services
    assert found.options.journal_retention_ms == 100 * 366 * 24 * 3600 * 1000


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_FIELDS = ("protocolMode", "minProtocolVersion", "maxProtocolVersion", "services")


@given(
    st.sampled_from(_FIELDS) | st.sampled_from(("name", "ty", "handlers", "metadata", "options")),
    _JSON,
)
def test_whatever_an_endpoint_says_is_a_manifest_or_an_error(field: str, value: object) -> None:
    if field in _FIELDS:
        body = manifest(service(), **{field: value})
    else:
        body = manifest(service(**{field: value}))
    try:
        found = parse_manifest(body, None)
    except PerdureError as error:
        assert error.code.startswith("META")
    else:
        assert all(service.name for service in found.services)


@given(st.binary(max_size=200))
def test_bytes_are_a_manifest_or_an_error(body: bytes) -> None:
    with pytest.raises(BadManifest):
        parse_manifest(body, None)
