"""JSON schemas of what the admin API answers, by name. Pure; made by ``shapes`` and its like."""

from perdure.node.admin.invocation_rows import STATUSES
from perdure.node.admin.operation import Schema
from perdure.node.admin.operator_schemas import OPERATOR_SCHEMAS
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

_DURATION: Schema = {"type": "string", "examples": ["1d", "1m 30s", "500ms"]}
_WORDS: Schema = {"type": "object", "additionalProperties": TEXT}
_ANY: Schema = {"type": "object"}


_REMARKS = list_of(object_of({"message": TEXT}, {"code": TEXT}))
_DESCRIBED = {"documentation": TEXT, "metadata": _WORDS, "info": _REMARKS}
_VERSIONS = {"min_protocol_version": NUMBER, "max_protocol_version": NUMBER}
_WHEREABOUTS = {
    "uri": TEXT,
    "protocol_type": {"enum": ["BidiStream", "RequestResponse"]},
    "http_version": {"enum": ["HTTP/1.1", "HTTP/2.0"]},
    "arn": TEXT,
    "assume_role_arn": TEXT,
    "compression": TEXT,
    "additional_headers": _WORDS,
    "metadata": _WORDS,
    "sdk_version": TEXT,
}
_FAILURE = object_of(
    {"code": NUMBER, "message": TEXT},
    {
        "error_code": TEXT,
        "stacktrace": TEXT,
        "command_index": NUMBER,
        "command_name": TEXT,
        "command_type": TEXT,
    },
)
_SUMMARY_REQUIRED = {
    "id": TEXT,
    "target": TEXT,
    "service": TEXT,
    "handler": TEXT,
    "status": {"enum": list(STATUSES)},
    "created_at": TIME,
    "modified_at": TIME,
    "invoked_by": {"enum": ["ingress", "service", "restart_as_new"]},
}
_SUMMARY_OPTIONAL = {
    "key": TEXT,
    "invoked_by_id": TEXT,
    "invoked_by_target": TEXT,
    "idempotency_key": TEXT,
    "scheduled_at": TIME,
    "started_at": TIME,
    "journal_length": NUMBER,
    "command_count": NUMBER,
    "deployment": TEXT,
    "protocol_version": NUMBER,
    "retry_count": NUMBER,
    "last_failure": _FAILURE,
    "next_retry_at": TIME,
    "completed_at": TIME,
    "expires_at": TIME,
    "result": object_of(
        {"kind": {"enum": ["success", "failure"]}}, {"code": NUMBER, "message": TEXT}
    ),
}
_SET = object_of(
    {
        "name": TEXT,
        "created_at": TIME,
        "cluster": TEXT,
        "software": TEXT,
        "size": NUMBER,
        "partitions": list_of(
            object_of({"partition": NUMBER, "lsn": NUMBER, "snapshot": TEXT, "size": NUMBER})
        ),
    }
)
_NODE_REQUIRED = {
    "name": TEXT,
    "id": NUMBER,
    "generation": NUMBER,
    "state": {"enum": ["alive", "suspect", "dead", "stopping", "failing_over"]},
    "is_controller": FLAG,
    "roles": list_of(TEXT),
    "storage": TEXT,
    "worker": TEXT,
    "metadata": TEXT,
    "leads": NUMBER,
    "holds": NUMBER,
    "loop_lag_ms": NUMBER,
    "is_disk_full": FLAG,
    "addresses": _WORDS,
}
_NODE_OPTIONAL = {"zone": TEXT, "software": TEXT}
_FAILED = list_of(object_of({"invocation_id": TEXT, "error": TEXT}))

SCHEMAS: dict[str, Schema] = {
    "Error": object_of({"message": TEXT, "restate_code": TEXT}),
    "Document": object_of({"openapi": TEXT, "info": _ANY, "paths": _ANY}),
    "Version": object_of(
        {
            "version": TEXT,
            "min_admin_api_version": NUMBER,
            "max_admin_api_version": NUMBER,
            "ingress_endpoint": TEXT,
            "features": {"type": "object", "additionalProperties": FLAG},
            "server": TEXT,
            "server_version": TEXT,
        }
    ),
    "ClusterHealth": object_of(
        {"cluster_name": TEXT, "metadata_cluster_health": object_of({"members": list_of(NUMBER)})}
    ),
    "Deployment": object_of(
        {
            "id": TEXT,
            "created_at": TIME,
            **_VERSIONS,
            "services": list_of(object_of({"name": TEXT, "revision": NUMBER})),
        },
        _WHEREABOUTS,
    ),
    "Deployments": object_of({"deployments": list_of(named("Deployment"))}),
    "DeploymentDetail": object_of(
        {"id": TEXT, "created_at": TIME, **_VERSIONS, "services": list_of(named("Service"))},
        _WHEREABOUTS,
    ),
    "Registered": object_of(
        {"id": TEXT, "services": list_of(named("Service")), **_VERSIONS}, {"sdk_version": TEXT}
    ),
    "DeploymentUses": object_of(
        {
            "id": TEXT,
            "latest_of": list_of(TEXT),
            "pinned_invocations": NUMBER,
            "is_removable": FLAG,
        }
    ),
    "RetryPolicy": object_of(
        {"max_attempts": nullable(NUMBER)},
        {
            "initial_interval": _DURATION,
            "exponentiation_factor": {"type": "number"},
            "max_interval": nullable(_DURATION),
            "on_max_attempts": {"enum": ["Pause", "Kill"]},
        },
    ),
    "Service": object_of(
        {
            "name": TEXT,
            "ty": {"enum": ["Service", "VirtualObject", "Workflow"]},
            "handlers": list_of(named("Handler")),
            "deployment_id": TEXT,
            "revision": NUMBER,
            "public": FLAG,
            "idempotency_retention": _DURATION,
            "inactivity_timeout": _DURATION,
            "abort_timeout": _DURATION,
            "enable_lazy_state": FLAG,
            "retry_policy": named("RetryPolicy"),
        },
        {
            **_DESCRIBED,
            "workflow_completion_retention": _DURATION,
            "journal_retention": _DURATION,
        },
    ),
    "Services": object_of({"services": list_of(named("Service"))}),
    "Handler": object_of(
        {
            "name": TEXT,
            "public": FLAG,
            "input_description": TEXT,
            "output_description": TEXT,
            "retry_policy": named("RetryPolicy"),
        },
        {
            "ty": {"enum": ["Exclusive", "Shared", "Workflow"]},
            **_DESCRIBED,
            "idempotency_retention": _DURATION,
            "journal_retention": _DURATION,
            "inactivity_timeout": _DURATION,
            "abort_timeout": _DURATION,
            "enable_lazy_state": FLAG,
            "input_json_schema": {},
            "output_json_schema": {},
        },
    ),
    "Handlers": object_of({"handlers": list_of(named("Handler"))}),
    "Restarted": object_of({"new_invocation_id": TEXT}),
    "BatchOutcome": object_of({"succeeded": list_of(TEXT), "failed": _FAILED}),
    "BatchRestarts": object_of(
        {
            "succeeded": list_of(object_of({"old_invocation_id": TEXT, "new_invocation_id": TEXT})),
            "failed": _FAILED,
        }
    ),
    "Invocation": object_of(_SUMMARY_REQUIRED, _SUMMARY_OPTIONAL),
    "Invocations": object_of({"invocations": list_of(named("Invocation"))}, {"cursor": TEXT}),
    "JournalEntry": object_of(
        {
            "index": NUMBER,
            "type": TEXT,
            "is_command": FLAG,
            "size": NUMBER,
            "appended_at": TIME,
        },
        {
            "name": TEXT,
            "completion_ids": list_of(NUMBER),
            "signal_index": NUMBER,
            "signal_name": TEXT,
            "target": TEXT,
            "key": TEXT,
            "wake_up_at": TIME,
            "invocation_id": TEXT,
            "failure": object_of({"code": NUMBER, "message": TEXT}),
        },
    ),
    "InvocationEvent": object_of(
        {
            "event": {"enum": ["transient_error", "paused", "suspended"]},
            "after_index": NUMBER,
            "at": TIME,
        },
        {"failure": _FAILURE, "awaiting": _ANY},
    ),
    "InvocationDetail": object_of(
        {
            **_SUMMARY_REQUIRED,
            "completion_retention_ms": NUMBER,
            "journal_retention_ms": NUMBER,
            "journal": list_of(named("JournalEntry")),
            "events": list_of(named("InvocationEvent")),
        },
        {
            **_SUMMARY_OPTIONAL,
            "next_from": NUMBER,
            "is_pausing": FLAG,
            "awaiting": _ANY,
            "attempt_count": NUMBER,
            "failures_since_last_command": NUMBER,
            "last_attempt_at": TIME,
            "last_attempt_deployment": TEXT,
            "last_attempt_server": TEXT,
        },
    ),
    "State": object_of(
        {
            "service": TEXT,
            "key": TEXT,
            "version": TEXT,
            "is_partial": FLAG,
            "entries": list_of(
                object_of({"name": TEXT, "size": NUMBER}, {"value": TEXT, "value_base64": TEXT})
            ),
        }
    ),
    "SnapshotSet": _SET,
    "Snapshots": object_of(
        {"destination": nullable(TEXT), "sets": list_of(named("SnapshotSet"))},
        {
            "is_sound": nullable(FLAG),
            "is_taking": FLAG,
            "failures": NUMBER,
            "stored_bytes": NUMBER,
            "fault": TEXT,
            "last_failure": TEXT,
        },
    ),
    "ClusterStanding": object_of(
        {
            "name": TEXT,
            "fingerprint": TEXT,
            "seen_by": TEXT,
            "is_single_node": FLAG,
            "replication": NUMBER,
            "partition_replicas": NUMBER,
            "problems": list_of(
                object_of(
                    {
                        "severity": {"enum": ["critical", "warning", "note"]},
                        "what": TEXT,
                        "advice": TEXT,
                    }
                )
            ),
            "nodes": list_of(named("Node")),
            "partitions": list_of(named("Partition")),
        },
        {"controller": TEXT},
    ),
    "Nodes": object_of({"nodes": list_of(named("Node"))}),
    "Node": object_of(_NODE_REQUIRED, _NODE_OPTIONAL),
    "NodeDetail": object_of({**_NODE_REQUIRED, "held_by": list_of(TEXT)}, _NODE_OPTIONAL),
    "NodeRemoved": object_of({"name": TEXT, "id": NUMBER, "is_removed": FLAG}),
    "Partitions": object_of({"partitions": list_of(named("Partition"))}),
    "Partition": object_of(
        {
            "partition": NUMBER,
            "leader": nullable(TEXT),
            "epoch": NUMBER,
            "replicas": list_of(
                object_of(
                    {
                        "node": TEXT,
                        "role": TEXT,
                        "applied_lsn": NUMBER,
                        "durable_lsn": NUMBER,
                        "is_coming": FLAG,
                    },
                    {"lag_records": NUMBER},
                )
            ),
            "segments": NUMBER,
            "nodeset": list_of(TEXT),
            "trim_lsn": NUMBER,
            "is_frozen": FLAG,
        },
        {
            "committed_lsn": NUMBER,
            "pinned": TEXT,
            "state": TEXT,
            "broken_because": TEXT,
            "waits_for": list_of(TEXT),
            "waits_because": TEXT,
        },
    ),
    **OPERATOR_SCHEMAS,
    "Taking": object_of({"is_taking": FLAG}),
    "Rows": object_of({"rows": list_of(_ANY)}),
    "Clusters": object_of({"clusters": {"type": "array", "maxItems": 0}}),
    "Subscriptions": object_of({"subscriptions": {"type": "array", "maxItems": 0}}),
}
