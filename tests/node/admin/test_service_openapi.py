"""OpenAPI documents of services, from what their manifests say: valid, and true to the ingress."""

import json
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from perdure.node.admin.openapi import service_document
from perdure.node.registry.manifest import parse_manifest

_TREE = {
    "type": "object",
    "required": ["root"],
    "properties": {"root": {"$ref": "#/$defs/Node"}, "again": {"$ref": "#"}},
    "examples": [{"$ref": "#/not/a/reference"}],
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"next": {"$ref": "#/$defs/Node"}, "value": {"type": "integer"}},
        }
    },
}


def document(kind: str, handlers: list[dict[str, Any]], **fields: object) -> Any:
    manifest = {
        "protocolMode": "BIDI_STREAM",
        "minProtocolVersion": 5,
        "maxProtocolVersion": 7,
        "services": [{"name": "Fake", "ty": kind, "handlers": handlers, **fields}],
    }
    found = parse_manifest(json.dumps(manifest).encode(), None).services[0]
    made: Any = json.loads(msgspec.json.encode(service_document(found, "http://h:8080/")))
    OpenAPIV31SpecValidator(made).validate()
    return made


def accepts(made: Any, schema: str, value: object) -> bool:
    rules = {"$ref": f"#/components/schemas/{schema}", "components": made["components"]}
    validator: Any = Draft202012Validator(rules)
    return bool(validator.is_valid(value))


def test_references_into_a_schema_are_found_from_the_document() -> None:
    content = {"contentType": "application/json", "jsonSchema": _TREE}
    made = document("SERVICE", [{"name": "grow", "input": content, "output": content}])
    for schema in ("growRequest", "growResponse"):
        assert accepts(made, schema, {"root": {"next": {"next": {"value": 1}}}})
        assert not accepts(made, schema, {"root": {"next": {"next": {"value": "x"}}}})
        assert accepts(made, schema, {"root": {}, "again": {"root": {}}})
        assert not accepts(made, schema, {"root": {}, "again": {}})
        kept = made["components"]["schemas"][schema]["examples"]
        assert kept == [{"$ref": "#/not/a/reference"}]


def test_what_a_schema_calls_itself_does_not_move_its_references() -> None:
    schema = {
        "$id": "https://example.com/s",
        "$ref": "#/$defs/A",
        "$defs": {"A": {"properties": {"$id": {"type": "null"}}, "type": "object"}},
    }
    content = {"contentType": "application/json", "jsonSchema": schema}
    made = document("SERVICE", [{"name": "a", "input": content}])
    assert accepts(made, "aRequest", {"$id": None})
    assert not accepts(made, "aRequest", {"$id": 1})


@pytest.mark.parametrize("schema", [True, False, {}])
def test_trivial_schemas(schema: object) -> None:
    content = {"contentType": "application/json", "jsonSchema": schema}
    made = document("SERVICE", [{"name": "a", "input": content}])
    assert made["components"]["schemas"]["aRequest"] == schema


def test_ids_of_operations_are_never_the_same() -> None:
    made = document("SERVICE", [{"name": name} for name in ("go", "goSend", "goSend_", "goAttach")])
    ids = [o["operationId"] for item in made["paths"].values() for o in item.values()]
    assert len(ids) == len(set(ids)) == 16
    assert {"go", "goSend", "goSend_", "goAttach", "goSend__"} <= set(ids)


def test_paths_by_type_of_service() -> None:
    plain = document("SERVICE", [{"name": "a"}])
    assert set(plain["paths"]) == {
        "/restate/call/Fake/a",
        "/restate/send/Fake/a",
        "/restate/invocation/Fake/a/{idempotencyKey}/attach",
        "/restate/invocation/Fake/a/{idempotencyKey}/output",
    }
    keyed = document("VIRTUAL_OBJECT", [{"name": "a"}])
    assert "/restate/call/Fake/{key}/a" in keyed["paths"]
    flow = document("WORKFLOW", [{"name": "run", "ty": "WORKFLOW"}, {"name": "b", "ty": "SHARED"}])
    assert {"/restate/workflow/Fake/{key}/attach", "/restate/workflow/Fake/{key}/output"} <= set(
        flow["paths"]
    )
    assert "/restate/invocation/Fake/{key}/b/{idempotencyKey}/output" in flow["paths"]


def test_private_handlers_are_left_out() -> None:
    made = document("SERVICE", [{"name": "a", "ingressPrivate": True}, {"name": "b"}])
    assert len(made["paths"]) == 4 and "/restate/call/Fake/b" in made["paths"]
    assert "aRequest" not in made["components"]["schemas"]
    hidden = document("SERVICE", [{"name": "a"}], ingressPrivate=True)
    assert hidden["paths"] == {}
