"""JSON schemas of what the admin API answers, by name. Pure; made by ``shapes`` and its like."""

from typing import Any

from perdure.node.admin.invocation_rows import STATUSES
from perdure.node.admin.operator_schemas import OPERATOR_SCHEMAS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_DURATION: Schema = {"type": "string", "examples": ["1d", "1m 30s", "500ms"]}
_WORDS: Schema = {"type": "object", "additionalProperties": _TEXT}
_ANY: Schema = {"type": "object"}


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


_REMARKS = _list(_object({"message": _TEXT}, {"code": _TEXT}))
_DESCRIBED = {"documentation": _TEXT, "metadata": _WORDS, "info": _REMARKS}
_VERSIONS = {"min_protocol_version": _NUMBER, "max_protocol_version": _NUMBER}
_WHEREABOUTS = {
    "uri": _TEXT,
    "protocol_type": {"enum": ["BidiStream", "RequestResponse"]},
    "http_version": {"enum": ["HTTP/1.1", "HTTP/2.0"]},
    "arn": _TEXT,
    "assume_role_arn": _TEXT,
    "compression": _TEXT,
    "additional_headers": _WORDS,
    "metadata": _WORDS,
    "sdk_version": _TEXT,
}
_FAILURE = _object(
    {"code": _NUMBER, "message": _TEXT},
    {
        "error_code": _TEXT,
        "stacktrace": _TEXT,
        "command_index": _NUMBER,
        "command_name": _TEXT,
        "command_type": _TEXT,
    },
)
_SUMMARY_REQUIRED = {
    "id": _TEXT,
    "target": _TEXT,
    "service": _TEXT,
    "handler": _TEXT,
    "status": {"enum": list(STATUSES)},
    "created_at": _TIME,
    "modified_at": _TIME,
    "invoked_by": {"enum": ["ingress", "service", "restart_as_new"]},
}
_SUMMARY_OPTIONAL = {
    "key": _TEXT,
    "invoked_by_id": _TEXT,
    "invoked_by_target": _TEXT,
    "idempotency_key": _TEXT,
    "scheduled_at": _TIME,
    "started_at": _TIME,
    "journal_length": _NUMBER,
    "command_count": _NUMBER,
    "deployment": _TEXT,
    "protocol_version": _NUMBER,
    "retry_count": _NUMBER,
    "last_failure": _FAILURE,
    "next_retry_at": _TIME,
    "completed_at": _TIME,
    "expires_at": _TIME,
    "result": _object(
        {"kind": {"enum": ["success", "failure"]}}, {"code": _NUMBER, "message": _TEXT}
    ),
}
_SET = _object(
    {
        "name": _TEXT,
        "created_at": _TIME,
        "cluster": _TEXT,
        "software": _TEXT,
        "size": _NUMBER,
        "partitions": _list(
            _object({"partition": _NUMBER, "lsn": _NUMBER, "snapshot": _TEXT, "size": _NUMBER})
        ),
    }
)
_NODE_REQUIRED = {
    "name": _TEXT,
    "id": _NUMBER,
    "generation": _NUMBER,
    "state": {"enum": ["alive", "suspect", "dead", "stopping", "failing_over"]},
    "is_controller": _FLAG,
    "roles": _list(_TEXT),
    "storage": _TEXT,
    "worker": _TEXT,
    "metadata": _TEXT,
    "leads": _NUMBER,
    "holds": _NUMBER,
    "loop_lag_ms": _NUMBER,
    "is_disk_full": _FLAG,
    "addresses": _WORDS,
}
_NODE_OPTIONAL = {"zone": _TEXT, "software": _TEXT}
_FAILED = _list(_object({"invocation_id": _TEXT, "error": _TEXT}))

SCHEMAS: dict[str, Schema] = {
    "Error": _object({"message": _TEXT, "restate_code": _TEXT}),
    "Document": _object({"openapi": _TEXT, "info": _ANY, "paths": _ANY}),
    "Version": _object(
        {
            "version": _TEXT,
            "min_admin_api_version": _NUMBER,
            "max_admin_api_version": _NUMBER,
            "ingress_endpoint": _TEXT,
            "features": {"type": "object", "additionalProperties": _FLAG},
            "server": _TEXT,
            "server_version": _TEXT,
        }
    ),
    "ClusterHealth": _object(
        {"cluster_name": _TEXT, "metadata_cluster_health": _object({"members": _list(_NUMBER)})}
    ),
    "Deployment": _object(
        {
            "id": _TEXT,
            "created_at": _TIME,
            **_VERSIONS,
            "services": _list(_object({"name": _TEXT, "revision": _NUMBER})),
        },
        _WHEREABOUTS,
    ),
    "Deployments": _object({"deployments": _list(_of("Deployment"))}),
    "DeploymentDetail": _object(
        {"id": _TEXT, "created_at": _TIME, **_VERSIONS, "services": _list(_of("Service"))},
        _WHEREABOUTS,
    ),
    "Registered": _object(
        {"id": _TEXT, "services": _list(_of("Service")), **_VERSIONS}, {"sdk_version": _TEXT}
    ),
    "DeploymentUses": _object(
        {
            "id": _TEXT,
            "latest_of": _list(_TEXT),
            "pinned_invocations": _NUMBER,
            "is_removable": _FLAG,
        }
    ),
    "RetryPolicy": _object(
        {"max_attempts": _nullable(_NUMBER)},
        {
            "initial_interval": _DURATION,
            "exponentiation_factor": {"type": "number"},
            "max_interval": _nullable(_DURATION),
            "on_max_attempts": {"enum": ["Pause", "Kill"]},
        },
    ),
    "Service": _object(
        {
            "name": _TEXT,
            "ty": {"enum": ["Service", "VirtualObject", "Workflow"]},
            "handlers": _list(_of("Handler")),
            "deployment_id": _TEXT,
            "revision": _NUMBER,
            "public": _FLAG,
            "idempotency_retention": _DURATION,
            "inactivity_timeout": _DURATION,
            "abort_timeout": _DURATION,
            "enable_lazy_state": _FLAG,
            "retry_policy": _of("RetryPolicy"),
        },
        {
            **_DESCRIBED,
            "workflow_completion_retention": _DURATION,
            "journal_retention": _DURATION,
        },
    ),
    "Services": _object({"services": _list(_of("Service"))}),
    "Handler": _object(
        {
            "name": _TEXT,
            "public": _FLAG,
            "input_description": _TEXT,
            "output_description": _TEXT,
            "retry_policy": _of("RetryPolicy"),
        },
        {
            "ty": {"enum": ["Exclusive", "Shared", "Workflow"]},
            **_DESCRIBED,
            "idempotency_retention": _DURATION,
            "journal_retention": _DURATION,
            "inactivity_timeout": _DURATION,
            "abort_timeout": _DURATION,
            "enable_lazy_state": _FLAG,
            "input_json_schema": {},
            "output_json_schema": {},
        },
    ),
    "Handlers": _object({"handlers": _list(_of("Handler"))}),
    "Restarted": _object({"new_invocation_id": _TEXT}),
    "BatchOutcome": _object({"succeeded": _list(_TEXT), "failed": _FAILED}),
    "BatchRestarts": _object(
        {
            "succeeded": _list(_object({"old_invocation_id": _TEXT, "new_invocation_id": _TEXT})),
            "failed": _FAILED,
        }
    ),
    "Invocation": _object(_SUMMARY_REQUIRED, _SUMMARY_OPTIONAL),
    "Invocations": _object({"invocations": _list(_of("Invocation"))}, {"cursor": _TEXT}),
    "JournalEntry": _object(
        {
            "index": _NUMBER,
            "type": _TEXT,
            "is_command": _FLAG,
            "size": _NUMBER,
            "appended_at": _TIME,
        },
        {
            "name": _TEXT,
            "completion_ids": _list(_NUMBER),
            "signal_index": _NUMBER,
            "signal_name": _TEXT,
            "target": _TEXT,
            "key": _TEXT,
            "wake_up_at": _TIME,
            "invocation_id": _TEXT,
            "failure": _object({"code": _NUMBER, "message": _TEXT}),
        },
    ),
    "InvocationEvent": _object(
        {
            "event": {"enum": ["transient_error", "paused", "suspended"]},
            "after_index": _NUMBER,
            "at": _TIME,
        },
        {"failure": _FAILURE, "awaiting": _ANY},
    ),
    "InvocationDetail": _object(
        {
            **_SUMMARY_REQUIRED,
            "completion_retention_ms": _NUMBER,
            "journal_retention_ms": _NUMBER,
            "journal": _list(_of("JournalEntry")),
            "events": _list(_of("InvocationEvent")),
        },
        {
            **_SUMMARY_OPTIONAL,
            "next_from": _NUMBER,
            "is_pausing": _FLAG,
            "awaiting": _ANY,
            "attempt_count": _NUMBER,
            "failures_since_last_command": _NUMBER,
            "last_attempt_at": _TIME,
            "last_attempt_deployment": _TEXT,
            "last_attempt_server": _TEXT,
        },
    ),
    "State": _object(
        {
            "service": _TEXT,
            "key": _TEXT,
            "version": _TEXT,
            "is_partial": _FLAG,
            "entries": _list(
                _object({"name": _TEXT, "size": _NUMBER}, {"value": _TEXT, "value_base64": _TEXT})
            ),
        }
    ),
    "SnapshotSet": _SET,
    "Snapshots": _object(
        {"destination": _nullable(_TEXT), "sets": _list(_of("SnapshotSet"))},
        {
            "is_sound": _nullable(_FLAG),
            "is_taking": _FLAG,
            "failures": _NUMBER,
            "stored_bytes": _NUMBER,
            "fault": _TEXT,
            "last_failure": _TEXT,
        },
    ),
    "ClusterStanding": _object(
        {
            "name": _TEXT,
            "fingerprint": _TEXT,
            "seen_by": _TEXT,
            "is_single_node": _FLAG,
            "replication": _NUMBER,
            "partition_replicas": _NUMBER,
            "problems": _list(
                _object(
                    {
                        "severity": {"enum": ["critical", "warning", "note"]},
                        "what": _TEXT,
                        "advice": _TEXT,
                    }
                )
            ),
            "nodes": _list(_of("Node")),
            "partitions": _list(_of("Partition")),
        },
        {"controller": _TEXT},
    ),
    "Nodes": _object({"nodes": _list(_of("Node"))}),
    "Node": _object(_NODE_REQUIRED, _NODE_OPTIONAL),
    "NodeDetail": _object({**_NODE_REQUIRED, "held_by": _list(_TEXT)}, _NODE_OPTIONAL),
    "NodeRemoved": _object({"name": _TEXT, "id": _NUMBER, "is_removed": _FLAG}),
    "Partitions": _object({"partitions": _list(_of("Partition"))}),
    "Partition": _object(
        {
            "partition": _NUMBER,
            "leader": _nullable(_TEXT),
            "epoch": _NUMBER,
            "replicas": _list(
                _object(
                    {
                        "node": _TEXT,
                        "role": _TEXT,
                        "applied_lsn": _NUMBER,
                        "durable_lsn": _NUMBER,
                        "is_coming": _FLAG,
                    },
                    {"lag_records": _NUMBER},
                )
            ),
            "segments": _NUMBER,
            "nodeset": _list(_TEXT),
            "trim_lsn": _NUMBER,
            "is_frozen": _FLAG,
        },
        {
            "committed_lsn": _NUMBER,
            "pinned": _TEXT,
            "state": _TEXT,
            "broken_because": _TEXT,
            "waits_for": _list(_TEXT),
            "waits_because": _TEXT,
        },
    ),
    **OPERATOR_SCHEMAS,
    "Taking": _object({"is_taking": _FLAG}),
    "Rows": _object({"rows": _list(_ANY)}),
    "Clusters": _object({"clusters": {"type": "array", "maxItems": 0}}),
    "Subscriptions": _object({"subscriptions": {"type": "array", "maxItems": 0}}),
}
