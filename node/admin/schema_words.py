"""The words that JSON schemas of answers are written in. Pure."""

from typing import Any

from perdure.node.admin.operation import Schema

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}


def object_of(required: dict[str, Any], optional: dict[str, Any] | None = None) -> Schema:
    """An object that has all of ``required`` and may have what is ``optional``."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def named(name: str) -> Schema:
    """The schema that the document has under a name."""
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}
