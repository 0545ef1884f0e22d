"""JSON schemas of what the routes for operators of logs and metadata answer. Pure."""

from typing import Any

from perdure.node.admin.operation import Schema
from perdure.node.admin.schema_words import (
    FLAG,
    NUMBER,
    TEXT,
    TIME,
    list_of,
    named,
    nullable,
    object_of,
)

_NAMES = list_of(TEXT)
_RANGES = list_of(object_of({"lower_lsn": NUMBER, "upper_lsn": NUMBER}))
_LOG: dict[str, Any] = {
    "partition": NUMBER,
    "leader": nullable(TEXT),
    "epoch": NUMBER,
    "begins_at": NUMBER,
    "ends_at": nullable(NUMBER),
    "segments": NUMBER,
    "nodeset": _NAMES,
    "is_under_replicated": FLAG,
}
_SEGMENT = object_of(
    {
        "segment": NUMBER,
        "base_lsn": NUMBER,
        "epoch": NUMBER,
        "writer": TEXT,
        "nodeset": _NAMES,
        "replication": NUMBER,
        "is_open": FLAG,
        "is_under_replicated": FLAG,
    },
    {"tail_lsn": NUMBER},
)
_CLOSE = object_of(
    {"segment": NUMBER, "tail_lsn": NUMBER, "begins_lsn": NUMBER, "by": TEXT, "at": TIME}
)
_REPORT = object_of(
    {
        "segment": NUMBER,
        "lower_lsn": NUMBER,
        "upper_lsn": NUMBER,
        "answered": _NAMES,
        "absent": _NAMES,
        "missing": _RANGES,
        "under_replicated": _RANGES,
        "diverging": _RANGES,
        "is_sound": FLAG,
    }
)
_PLACE = object_of({"place": TEXT, "state": TEXT, "term": NUMBER, "detail": TEXT})

OPERATOR_SCHEMAS: dict[str, Schema] = {
    "Logs": object_of({"logs": list_of(named("Log"))}),
    "Log": object_of(_LOG, {"replication": NUMBER}),
    "LogDetail": object_of(
        {**_LOG, "chain": list_of(_SEGMENT), "unsafe_closes": list_of(_CLOSE)},
        {"replication": NUMBER},
    ),
    "LogVerification": object_of(
        {
            "partition": NUMBER,
            "began_at": TIME,
            "is_under_way": FLAG,
            "is_sound": FLAG,
            "segments": list_of(_REPORT),
        },
        {"ended_at": TIME, "failure": TEXT},
    ),
    "LogSeal": object_of(
        {
            "partition": NUMBER,
            "segment": NUMBER,
            "sealed": _NAMES,
            "absent": _NAMES,
            "is_ended": FLAG,
        }
    ),
    "LogUnsafeClose": object_of(
        {
            "partition": NUMBER,
            "segment": NUMBER,
            "base_lsn": NUMBER,
            "replication": NUMBER,
            "needed": NUMBER,
            "counted": list_of(
                object_of({"name": TEXT, "committed_lsn": NUMBER, "last_lsn": NUMBER})
            ),
            "silent": _NAMES,
            "given_up": _NAMES,
            "tables": list_of(object_of({"name": TEXT, "applied_lsn": NUMBER})),
            "committed_lsn": NUMBER,
            "last_lsn": NUMBER,
            "begins_lsn": NUMBER,
            "refusal": nullable(TEXT),
            "is_allowed": FLAG,
        },
        {"done": _CLOSE},
    ),
    "Metadata": object_of(
        {"backend": {"enum": ["local", "members", "etcd"]}, "places": list_of(_PLACE)},
        {"registers": NUMBER, "failure": TEXT},
    ),
    "Registers": object_of({"registers": list_of(named("Register"))}),
    "Register": object_of({"key": TEXT, "version": NUMBER, "value": {}}),
    "MetadataBackup": object_of({"cluster": TEXT, "fingerprint": TEXT, "content": TEXT}),
    "Voters": object_of({"quorum": NUMBER, "voters": list_of(TEXT)}, {"following": list_of(TEXT)}),
}
