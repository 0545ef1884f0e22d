"""Documents that known clients decode: to the letter."""

import json
from typing import Any

import msgspec
import pytest

from perdure.node.admin.shapes import (
    deployment_item,
    describe_input,
    describe_output,
    service_shape,
)
from perdure.node.registry.effective import Defaults
from perdure.node.registry.manifest import parse_manifest
from perdure.node.registry.model import Deployment, Handler, Service

_JSON = "application/json"


def parse(mode: str, *services: dict[str, Any]) -> Deployment:
    """A deployment of what a manifest says."""
    manifest = {
        "protocolMode": mode,
        "minProtocolVersion": 5,
        "maxProtocolVersion": 6,
        "services": list(services),
    }
    found = parse_manifest(json.dumps(manifest).encode(), None)
    return Deployment(
        id="dp_1",
        uri="http://h:1/",
        http_version="HTTP/1.1",
        is_bidirectional=found.is_bidirectional,
        protocol_version_min=5,
        protocol_version_max=6,
        created_at_ms=1_764_000_000_000,
        services={service.name: service for service in found.services},
    )


def service(handlers: list[dict[str, Any]], **fields: object) -> dict[str, Any]:
    return {"name": "Fake", "ty": "SERVICE", "handlers": handlers, **fields}


def shown(deployment: Deployment, defaults: Defaults | None = None) -> dict[str, Any]:
    found: Service = deployment.services["Fake"]
    document = service_shape(found, deployment, defaults or Defaults())
    decoded: dict[str, Any] = json.loads(msgspec.json.encode(document))
    return decoded


def handler(**fields: object) -> Handler:
    found = parse("BIDI_STREAM", service([{"name": "run", **fields}]))
    return found.services["Fake"].handlers["run"]


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (None, "*/*"),
        ({}, "none"),
        ({"required": True}, "none"),
        ({"required": True, "contentType": _JSON}, _JSON),
        ({"contentType": "*/*"}, "*/*"),
        ({"contentType": _JSON, "jsonSchema": {"type": "integer"}}, "JSON integer"),
        ({"contentType": _JSON, "jsonSchema": {"type": "object", "title": "Foo"}}, "JSON 'Foo'"),
        ({"contentType": _JSON, "jsonSchema": {"type": ["object", "null"]}}, _JSON),
        ({"contentType": _JSON, "jsonSchema": {}}, _JSON),
        ({"contentType": "text/plain", "jsonSchema": True}, "text/plain"),
    ],
)
def test_input_in_words(stated: dict[str, object] | None, words: str) -> None:
    fields = {} if stated is None else {"input": stated}
    assert describe_input(handler(**fields)) == words


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (None, _JSON),
        ({}, "none"),
        ({"contentType": "text/plain"}, "text/plain"),
        ({"contentType": "text/plain", "setContentTypeIfEmpty": True}, "optional text/plain"),
        (
            {"contentType": _JSON, "setContentTypeIfEmpty": True, "jsonSchema": {"title": "Bar"}},
            "JSON 'Bar'",
        ),
        ({"setContentTypeIfEmpty": True}, "none"),
    ],
)
def test_output_in_words(stated: dict[str, object] | None, words: str) -> None:
    fields = {} if stated is None else {"output": stated}
    assert describe_output(handler(**fields)) == words


def test_a_handler_that_says_everything() -> None:
    stated = {
        "name": "g",
        "input": {},
        "output": {},
        "documentation": "doc",
        "metadata": {"x": "y"},
        "inactivityTimeout": 1500,
        "abortTimeout": 90_061_000,
        "journalRetention": 0,
        "idempotencyRetention": 3_600_000,
        "enableLazyState": True,
        "ingressPrivate": True,
        "retryPolicyInitialInterval": 250,
        "retryPolicyMaxInterval": 3000,
        "retryPolicyMaxAttempts": 3,
        "retryPolicyExponentiationFactor": 1.5,
        "retryPolicyOnMaxAttempts": "KILL",
    }
    (found,) = shown(parse("REQUEST_RESPONSE", service([stated])))["handlers"]
    (remark,) = found.pop("info")
    assert remark["code"] == "RT0021" and "1s 500ms" in remark["message"]
    assert found == {
        "name": "g",
        "documentation": "doc",
        "metadata": {"x": "y"},
        "idempotency_retention": "1h",
        "journal_retention": "0s",
        "abort_timeout": "1d 1h 1m 1s",
        "enable_lazy_state": True,
        "public": False,
        "input_description": "none",
        "output_description": "none",
        "retry_policy": {
            "initial_interval": "250ms",
            "exponentiation_factor": 1.5,
            "max_attempts": 3,
            "max_interval": "3s",
            "on_max_attempts": "Kill",
        },
    }


def test_a_service_that_says_nothing() -> None:
    found = shown(parse("BIDI_STREAM", service([{"name": "a"}], retryPolicyMaxAttempts=0)))
    assert found == {
        "name": "Fake",
        "ty": "Service",
        "handlers": [
            {
                "name": "a",
                "public": True,
                "input_description": "*/*",
                "output_description": _JSON,
                "retry_policy": {"max_attempts": None},
            }
        ],
        "deployment_id": "dp_1",
        "revision": 1,
        "public": True,
        "idempotency_retention": "1d",
        "journal_retention": "1d",
        "inactivity_timeout": "1m",
        "abort_timeout": "10m",
        "enable_lazy_state": False,
        "retry_policy": {
            "initial_interval": "500ms",
            "exponentiation_factor": 2.0,
            "max_attempts": 1,
            "max_interval": "1m",
            "on_max_attempts": "Pause",
        },
    }


def test_a_workflow_shows_its_run_handlers_retention() -> None:
    run = {"name": "run", "ty": "WORKFLOW", "workflowCompletionRetention": 5000}
    found = shown(parse("BIDI_STREAM", service([run], ty="WORKFLOW", ingressPrivate=True)))
    assert found["workflow_completion_retention"] == "5s"
    assert found["public"] is False and found["handlers"][0]["public"] is False
    assert found["handlers"][0]["ty"] == "Workflow"


def test_a_clamped_retention_is_remarked_on() -> None:
    defaults = Defaults(journal_retention_ms_max=1000)
    found = shown(parse("BIDI_STREAM", service([], journalRetention=5000)), defaults)
    assert found["journal_retention"] == "1s"
    assert [remark["code"] for remark in found["info"]] == ["RT0022"]


def test_a_deployment_leaves_out_what_it_doesnt_have() -> None:
    assert deployment_item(parse("REQUEST_RESPONSE", service([]))) == {
        "id": "dp_1",
        "uri": "http://h:1/",
        "protocol_type": "RequestResponse",
        "http_version": "HTTP/1.1",
        "created_at": "2025-11-24T16:00:00.000Z",
        "min_protocol_version": 5,
        "max_protocol_version": 6,
        "services": [{"name": "Fake", "revision": 1}],
    }
