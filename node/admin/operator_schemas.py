"""JSON schemas of what the routes for operators of logs and metadata answer. Pure."""

from typing import Any

from perdure.node.admin.operation import Schema

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_TIME: Schema = {"type": "string", "format": "date-time"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _of(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_NAMES = _list(_TEXT)
_RANGES = _list(_object({"lower_lsn": _NUMBER, "upper_lsn": _NUMBER}))
_LOG: dict[str, Any] = {
    "partition": _NUMBER,
    "leader": _nullable(_TEXT),
    "epoch": _NUMBER,
    "begins_at": _NUMBER,
    "ends_at": _nullable(_NUMBER),
    "segments": _NUMBER,
    "nodeset": _NAMES,
    "is_under_replicated": _FLAG,
}
_SEGMENT = _object(
    {
        "segment": _NUMBER,
        "base_lsn": _NUMBER,
        "epoch": _NUMBER,
        "writer": _TEXT,
        "nodeset": _NAMES,
        "replication": _NUMBER,
        "is_open": _FLAG,
        "is_under_replicated": _FLAG,
    },
    {"tail_lsn": _NUMBER},
)
_REPORT = _object(
    {
        "segment": _NUMBER,
        "lower_lsn": _NUMBER,
        "upper_lsn": _NUMBER,
        "answered": _NAMES,
        "absent": _NAMES,
        "missing": _RANGES,
        "under_replicated": _RANGES,
        "diverging": _RANGES,
        "is_sound": _FLAG,
    }
)
_PLACE = _object({"place": _TEXT, "state": _TEXT, "term": _NUMBER, "detail": _TEXT})

OPERATOR_SCHEMAS: dict[str, Schema] = {
    "Logs": _object({"logs": _list(_of("Log"))}),
    "Log": _object(_LOG, {"replication": _NUMBER}),
    "LogDetail": _object({**_LOG, "chain": _list(_SEGMENT)}, {"replication": _NUMBER}),
    "LogVerification": _object(
        {
            "partition": _NUMBER,
            "began_at": _TIME,
            "is_under_way": _FLAG,
            "is_sound": _FLAG,
            "segments": _list(_REPORT),
        },
        {"ended_at": _TIME, "failure": _TEXT},
    ),
    "LogSeal": _object(
        {
            "partition": _NUMBER,
            "segment": _NUMBER,
            "sealed": _NAMES,
            "absent": _NAMES,
            "is_ended": _FLAG,
        }
    ),
    "Metadata": _object(
        {"backend": {"enum": ["local", "members", "etcd"]}, "places": _list(_PLACE)},
        {"registers": _NUMBER, "failure": _TEXT},
    ),
    "Registers": _object({"registers": _list(_of("Register"))}),
    "Register": _object({"key": _TEXT, "version": _NUMBER, "value": {}}),
    "MetadataBackup": _object({"cluster": _TEXT, "fingerprint": _TEXT, "content": _TEXT}),
    "Voters": _object({"quorum": _NUMBER, "voters": _list(_TEXT)}, {"following": _list(_TEXT)}),
}
