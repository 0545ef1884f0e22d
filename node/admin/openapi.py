"""A service's ingress as an OpenAPI 3.1 document, for playgrounds and code generators. Pure."""

from typing import Any, cast

import msgspec

from perdure.node.admin.shapes import describe_input, describe_output
from perdure.node.registry.model import Handler, Service
from perdure.storage.tables.invocations import HandlerKind

Document = dict[str, Any]

_EXTENSION = "x-restate-extensions"
# What these members of a schema hold is data, not schemas.
_VALUES = ("const", "default", "enum", "examples")


def service_document(service: Service, ingress_url: str) -> Document:
    """The document of a service's public handlers."""
    paths: Document = {}
    schemas: Document = {"RestateError": _ERROR_SCHEMA}
    for handler in service.handlers.values():
        if service.public and handler.public is not False:
            paths.update(_paths(service, handler))
            request, response = f"{handler.name}Request", f"{handler.name}Response"
            schemas[request] = _schema(request, handler.input.json_schema)
            schemas[response] = _schema(response, handler.output.json_schema)
    about: Document = {"title": service.name, "version": str(service.revision)}
    if service.documentation is not None:
        about["description"] = service.documentation
    if service.metadata:
        about[_EXTENSION] = service.metadata
    return {
        "openapi": "3.1.0",
        "info": about,
        "servers": [{"url": ingress_url}],
        "paths": paths,
        "components": {
            "parameters": _PARAMETERS,
            "responses": _RESPONSES,
            "schemas": schemas,
        },
    }


def _paths(service: Service, handler: Handler) -> Document:
    name = handler.name
    key = "/{key}" if service.type.is_keyed else ""
    is_run = handler.kind == HandlerKind.WORKFLOW_RUN
    parameters = [_parameter("key")] if key else []
    callable_with = parameters if is_run else [*parameters, _parameter("idempotencyKeyHeader")]
    where = f"{service.name}{key}/{name}"
    call = _operation(name, handler, callable_with)
    call["responses"] = {"200": _success(handler), "default": _response("GenericError")}
    send = _operation(_id(service, name, "Send"), handler, [*callable_with, _parameter("delay")])
    send["responses"] = {
        "200": _response("Send"),
        "202": _response("Send"),
        "default": _response("GenericError"),
    }
    if is_run:
        base, identified = f"/restate/workflow/{service.name}/{{key}}", parameters
    else:
        base = f"/restate/invocation/{where}/{{idempotencyKey}}"
        identified = [*parameters, _parameter("idempotencyKeyPath")]
    found: Document = {
        "200": _success(handler),
        "404": _response("InvocationNotFoundError"),
        "default": _response("GenericError"),
    }
    attach: Document = {
        "operationId": _id(service, name, "Attach"),
        "deprecated": True,
        "parameters": identified,
        "responses": found,
    }
    output: Document = {
        "operationId": _id(service, name, "Output"),
        "deprecated": True,
        "parameters": identified,
        "responses": {**found, "470": _response("InvocationNotReadyError")},
    }
    return {
        f"/restate/call/{where}": {"post": call},
        f"/restate/send/{where}": {"post": send},
        f"{base}/attach": {"get": attach},
        f"{base}/output": {"get": output},
    }


def _id(service: Service, name: str, verb: str) -> str:
    """An operation's id, unlike the name of any handler."""
    found = f"{name}{verb}"
    while found in service.handlers:
        found += "_"
    return found


def _operation(operation: str, handler: Handler, parameters: list[Document]) -> Document:
    document: Document = {"operationId": operation, "summary": handler.name}
    if handler.documentation is not None:
        document["description"] = handler.documentation
    if handler.metadata:
        document[_EXTENSION] = handler.metadata
    if parameters:
        document["parameters"] = parameters
    rules = handler.input
    content_type = "*/*" if rules.is_open else rules.content_type
    if content_type is not None:
        document["requestBody"] = {
            "description": describe_input(handler),
            "required": rules.required,
            "content": {content_type: {"schema": _reference("schemas", f"{handler.name}Request")}},
        }
    return document


def _success(handler: Handler) -> Document:
    document: Document = {"description": describe_output(handler)}
    if handler.output.content_type is not None:
        schema = _reference("schemas", f"{handler.name}Response")
        document["content"] = {handler.output.content_type: {"schema": schema}}
    return document


def _schema(name: str, text: bytes | None) -> object:
    """A handler's schema as a component of the document."""
    if text is None:
        return True
    return _rebased(msgspec.json.decode(text), f"#/components/schemas/{name}")


def _rebased(schema: object, base: str) -> object:
    """References into the schema itself (``#/$defs/…``), made to start from the document's root.

    What the schema calls itself would change where they start, so that is left out.
    """
    if isinstance(schema, list):
        return [_rebased(item, base) for item in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    rebased: Document = {}
    for key, value in cast("dict[str, object]", schema).items():
        if key == "$id" and isinstance(value, str):
            continue
        if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            rebased[key] = base + value[1:]
        else:
            rebased[key] = value if key in _VALUES else _rebased(value, base)
    return rebased


def _reference(section: str, name: str) -> Document:
    return {"$ref": f"#/components/{section}/{name}"}


def _parameter(name: str) -> Document:
    return _reference("parameters", name)


def _response(name: str) -> Document:
    return _reference("responses", name)


def _error_response(description: str) -> Document:
    content = {"application/json": {"schema": _reference("schemas", "RestateError")}}
    return {"description": description, "content": content}


_TEXT: Document = {"type": "string"}
_PARAMETERS: Document = {
    "key": {"name": "key", "in": "path", "required": True, "schema": _TEXT},
    "delay": {
        "name": "delay",
        "in": "query",
        "required": False,
        "description": "When to start, from now on: ISO 8601 (PT10S) or in words (10s).",
        "schema": _TEXT,
    },
    "idempotencyKeyHeader": {
        "name": "idempotency-key",
        "in": "header",
        "required": False,
        "description": "Calls with the same key are the same call.",
        "schema": _TEXT,
    },
    "idempotencyKeyPath": {
        "name": "idempotencyKey",
        "in": "path",
        "required": True,
        "schema": _TEXT,
    },
}
_SENT_SCHEMA: Document = {
    "type": "object",
    "required": ["invocationId", "status"],
    "properties": {
        "invocationId": _TEXT,
        "status": {"type": "string", "enum": ["Accepted", "PreviouslyAccepted"]},
        "executionTime": {"type": "string", "format": "date-time"},
    },
}
_ERROR_SCHEMA: Document = {
    "type": "object",
    "required": ["message"],
    "properties": {"code": {"type": "integer"}, "message": _TEXT, "source": _TEXT},
}
_RESPONSES: Document = {
    "Send": {
        "description": "The invocation is accepted, or was before.",
        "content": {"application/json": {"schema": _SENT_SCHEMA}},
    },
    "GenericError": _error_response("The request was refused, or the invocation failed."),
    "InvocationNotFoundError": _error_response("There is no such invocation."),
    "InvocationNotReadyError": _error_response("The invocation has not completed yet."),
}
