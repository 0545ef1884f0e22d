"""The admin API as an OpenAPI 3.1 document, made from its routes. Pure.

Paths, methods and request bodies are those of the routes; words and answers come from
``OPERATIONS`` and ``SCHEMAS``.
"""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

import perdure
from perdure.node.admin.answer_schemas import SCHEMAS
from perdure.node.admin.operation import Operation, Success
from perdure.node.admin.operations import OPERATIONS
from perdure.node.admin.routes import VERSION_MAX, Route

Document = dict[str, Any]

_REFERENCE = "#/components/schemas/{name}"
# Any request may be one too many, or meet a bug.
_REFUSALS_OF_ALL = (429, 500)
_ARROW = "application/vnd.apache.arrow.stream"


def api_document(routes: Sequence[Route[Any]], version: int) -> Document:
    """The document of a version of the API; 0: of the paths without a prefix."""
    bodies = list(dict.fromkeys(route.body for route in routes if route.body is not None))
    shapes, components = msgspec.json.schema_components(bodies, ref_template=_REFERENCE)
    shape_of = dict(zip(bodies, shapes, strict=True))
    paths: Document = {}
    for route in routes:
        operation = OPERATIONS[route.method, route.pattern]
        if operation.only in (None, version):
            body = shape_of[route.body] if route.body is not None else None
            item = paths.setdefault(route.pattern, {})
            item[route.method.lower()] = _operation(route.pattern, operation, body)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "perdure admin API",
            "version": str(version or VERSION_MAX),
            "description": f"What operators and their tools ask of a node (perdure "
            f"{perdure.__version__}). Every error has one shape.",
        },
        "servers": [{"url": f"/v{version}" if version else "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(o.group for o in OPERATIONS.values())],
        "paths": paths,
        "components": {"schemas": {**SCHEMAS, **components}},
    }


def _operation(pattern: str, operation: Operation, body: Document | None) -> Document:
    parameters: list[Document] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", pattern)
    ]
    for name, schema in (operation.query or {}).items():
        parameters.append({"name": name, "in": "query", "schema": schema})
    document: Document = {
        "operationId": operation.id,
        "tags": [operation.group],
        "summary": operation.summary,
    }
    if operation.is_deprecated:
        document["deprecated"] = True
    if parameters:
        document["parameters"] = parameters
    if body is not None:
        document["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    responses = {str(status): _success(success) for status, success in operation.successes.items()}
    for status in sorted({*operation.refusals, *_REFUSALS_OF_ALL}):
        responses[str(status)] = _json(HTTPStatus(status).phrase, "Error")
    document["responses"] = responses
    return document


def _success(success: Success) -> Document:
    if success.shape is None:
        return {"description": success.meaning}
    document = _json(success.meaning, success.shape)
    if success.shape == "Rows":
        document["content"][_ARROW] = {"schema": {}}
    return document


def _json(meaning: str, shape: str) -> Document:
    schema = {"$ref": _REFERENCE.format(name=shape)}
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}
