"""What each route of the admin API is for: the words and shapes its document is made of. Pure.

A test holds this table and the routes one-to-one, another the shapes and what a node answers.
"""

from perdure.core.limits import BATCH_INVOCATIONS_MAX, INSPECTION_PAGE_MAX
from perdure.node.admin.invocation_rows import ALIASES, STATUSES
from perdure.node.admin.operation import Operation, Schema, Success
from perdure.node.admin.operator_operations import OPERATOR_OPERATIONS

_NODE, _DEPLOYMENTS, _SERVICES = "node", "deployments", "services"
_INVOCATIONS, _READING, _ABSENT = "invocations", "reading", "not here"
_CLUSTER = "cluster"

_TEXT: Schema = {"type": "string"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_FLAG: Schema = {"type": "boolean", "default": False}
_PAGE: Schema = {"type": "integer", "minimum": 1, "maximum": INSPECTION_PAGE_MAX}
_INDEX: Schema = {"type": "integer", "minimum": 0, "default": 0}
_CHOICE: Schema = {
    "type": "string",
    "description": "`keep`, `latest` or the id of a deployment.",
}
_DONE = Success("Done.")
_COMING = Success("Accepted: it will be done.")
_UPDATED = Success("The deployment as it is now.", "DeploymentDetail")


def _verb(name: str, summary: str, *, is_awaited: bool = False) -> Operation:
    successes = {200: _DONE, 202: _COMING} if is_awaited else {200: _DONE}
    return Operation(
        id=f"{name.replace('-', '_')}_invocation",
        group=_INVOCATIONS,
        summary=summary,
        successes=successes,
        refusals=(400, 404, 409, 503),
    )


def _batch(name: str) -> Operation:
    shape = "BatchRestarts" if name == "restart-as-new" else "BatchOutcome"
    return Operation(
        id=f"batch_{name.replace('-', '_')}_invocations",
        group=_INVOCATIONS,
        summary=f"Do {name} to up to {BATCH_INVOCATIONS_MAX} invocations, each by itself.",
        successes={200: Success("What became of each.", shape)},
        refusals=(400, 415, 422, 503),
    )


def _absent(id: str, status: int = 501) -> Operation:
    return Operation(
        id=id,
        group=_ABSENT,
        summary="Refused: there is no Kafka ingestion here, and no limits by rules.",
        successes={},
        refusals=(status,),
    )


OPERATIONS: dict[tuple[str, str], Operation] = {
    # --- The node -------------------------------------------------------------------------------
    ("GET", "/health"): Operation(
        id="get_health",
        group=_NODE,
        summary="Whether all that the node serves is served: no partition is halted, the disk has "
        "room, the node isn't stopping and not cut off from its cluster.",
        successes={200: Success("It is.")},
        refusals=(503,),
    ),
    ("GET", "/version"): Operation(
        id="get_version",
        group=_NODE,
        summary="Versions of API and server, and where the ingress is.",
        successes={200: Success("They.", "Version")},
    ),
    ("GET", "/cluster-health"): Operation(
        id="get_cluster_health",
        group=_NODE,
        summary="Name of the cluster, and the nodes that vote on its metadata.",
        successes={200: Success("They.", "ClusterHealth")},
        refusals=(503,),
        is_deprecated=True,
    ),
    ("GET", "/openapi"): Operation(
        id="get_openapi",
        group=_NODE,
        summary="This document.",
        successes={200: Success("An OpenAPI 3.1 document.", "Document")},
    ),
    # --- Deployments ----------------------------------------------------------------------------
    ("GET", "/deployments"): Operation(
        id="list_deployments",
        group=_DEPLOYMENTS,
        summary="All deployments, oldest first.",
        successes={200: Success("They.", "Deployments")},
    ),
    ("POST", "/deployments"): Operation(
        id="register_deployment",
        group=_DEPLOYMENTS,
        summary="Discover an endpoint and register what it offers; leave known ones alone.",
        successes={
            200: Success("Known before; overwritten, if that was asked for.", "Registered"),
            201: Success("New.", "Registered"),
        },
        refusals=(400, 409, 415, 422, 500, 501),
    ),
    ("GET", "/deployments/{id}"): Operation(
        id="get_deployment",
        group=_DEPLOYMENTS,
        summary="One deployment, with its services in full.",
        successes={200: Success("It.", "DeploymentDetail")},
        refusals=(400, 404),
    ),
    ("PATCH", "/deployments/{id}"): Operation(
        id="update_deployment",
        group=_DEPLOYMENTS,
        summary="Move a deployment, change its headers, or take over what it offers now.",
        successes={200: _UPDATED},
        refusals=(400, 404, 409, 415, 422, 500),
    ),
    ("PUT", "/deployments/{id}"): Operation(
        id="replace_deployment",
        group=_DEPLOYMENTS,
        summary="The same as PATCH.",
        successes={200: _UPDATED},
        refusals=(400, 404, 409, 415, 422, 500),
        only=2,
        is_deprecated=True,
    ),
    ("DELETE", "/deployments/{id}"): Operation(
        id="delete_deployment",
        group=_DEPLOYMENTS,
        summary="Forget a deployment that nothing needs; with force, in any case.",
        successes={202: _COMING},
        refusals=(400, 404, 409),
        query={"force": _FLAG},
    ),
    ("GET", "/perdure/deployments/{id}"): Operation(
        id="get_deployment_uses",
        group=_READING,
        summary="What a deployment is needed for.",
        successes={200: Success("Services and a count of invocations.", "DeploymentUses")},
        refusals=(400, 404),
    ),
    # --- Services -------------------------------------------------------------------------------
    ("GET", "/services"): Operation(
        id="list_services",
        group=_SERVICES,
        summary="The latest revision of every service, by name.",
        successes={200: Success("They.", "Services")},
    ),
    ("GET", "/services/{service}"): Operation(
        id="get_service",
        group=_SERVICES,
        summary="The latest revision of a service.",
        successes={200: Success("It.", "Service")},
        refusals=(404,),
    ),
    ("PATCH", "/services/{service}"): Operation(
        id="update_service",
        group=_SERVICES,
        summary="Change settings of a service until it is registered again.",
        successes={200: Success("The service as it is now.", "Service")},
        refusals=(400, 404, 409, 415, 422),
    ),
    ("GET", "/services/{service}/openapi"): Operation(
        id="get_service_openapi",
        group=_SERVICES,
        summary="How to call the service through the ingress.",
        successes={200: Success("An OpenAPI 3.1 document.", "Document")},
        refusals=(404,),
    ),
    ("GET", "/services/{service}/handlers"): Operation(
        id="list_handlers",
        group=_SERVICES,
        summary="The handlers of a service.",
        successes={200: Success("They.", "Handlers")},
        refusals=(404,),
    ),
    ("GET", "/services/{service}/handlers/{handler}"): Operation(
        id="get_handler",
        group=_SERVICES,
        summary="One handler.",
        successes={200: Success("It.", "Handler")},
        refusals=(404,),
    ),
    ("POST", "/services/{service}/state"): Operation(
        id="edit_state",
        group=_SERVICES,
        summary="Replace all state of an object, in its turn.",
        successes={202: Success("Accepted; dropped if the state has another version by then.")},
        refusals=(400, 404, 415, 422, 503),
    ),
    # --- Invocations ----------------------------------------------------------------------------
    ("PATCH", "/invocations/{id}/cancel"): _verb(
        "cancel", "Ask an invocation to end; its handler may clean up.", is_awaited=True
    ),
    ("PATCH", "/invocations/{id}/kill"): _verb(
        "kill", "End an invocation, and what it called, at once.", is_awaited=True
    ),
    ("PATCH", "/invocations/{id}/pause"): _verb(
        "pause", "Stop an invocation where it is.", is_awaited=True
    ),
    ("PATCH", "/invocations/{id}/purge"): _verb("purge", "Forget a completed invocation."),
    ("PATCH", "/invocations/{id}/purge-journal"): _verb(
        "purge-journal", "Forget the journal of a completed invocation."
    ),
    ("PATCH", "/invocations/{id}/resume"): Operation(
        id="resume_invocation",
        group=_INVOCATIONS,
        summary="Let an invocation go on; one that backs off tries again now.",
        successes={200: _DONE},
        refusals=(400, 404, 409, 425, 503),
        query={"deployment": {**_CHOICE, "default": "keep"}},
    ),
    ("PATCH", "/invocations/{id}/restart-as-new"): Operation(
        id="restart_invocation",
        group=_INVOCATIONS,
        summary="Run a completed invocation again, from an index of its journal.",
        successes={200: Success("The new invocation.", "Restarted")},
        refusals=(400, 404, 409, 410, 422, 425, 503),
        query={"from": _INDEX, "deployment": _CHOICE},
    ),
    ("DELETE", "/invocations/{id}"): Operation(
        id="terminate_invocation",
        group=_INVOCATIONS,
        summary="Cancel, kill or purge, whatever becomes of it.",
        successes={202: _COMING},
        refusals=(400, 503),
        query={"mode": {"enum": ["cancel", "kill", "purge"], "default": "cancel"}},
        is_deprecated=True,
    ),
    **{
        ("POST", f"/internal/invocations_batch_operations/{verb}"): _batch(verb)
        for verb in (
            *("cancel", "kill", "pause", "purge", "purge-journal"),
            *("resume", "restart-as-new"),
        )
    },
    # --- Reading --------------------------------------------------------------------------------
    ("GET", "/perdure/invocations"): Operation(
        id="list_invocations",
        group=_READING,
        summary="A page of invocations.",
        successes={200: Success("Go on with `cursor` while there is one.", "Invocations")},
        refusals=(400,),
        query={
            "status": {**_TEXT, "description": f"Of {', '.join((*STATUSES, *ALIASES))}."},
            "service": _TEXT,
            "handler": _TEXT,
            "key": _TEXT,
            "created_after": _TIME,
            "created_before": _TIME,
            "limit": _PAGE,
            "cursor": _TEXT,
        },
    ),
    ("GET", "/perdure/invocations/{id}"): Operation(
        id="get_invocation",
        group=_READING,
        summary="An invocation with a page of its journal.",
        successes={200: Success("Go on with `next_from` while there is one.", "InvocationDetail")},
        refusals=(400, 404),
        query={"from": _INDEX, "limit": _PAGE},
    ),
    ("GET", "/perdure/state/{service}/{key}"): Operation(
        id="get_state",
        group=_READING,
        summary="All state of an object, and its version.",
        successes={200: Success("It; what is too much has no value.", "State")},
    ),
    ("POST", "/query"): Operation(
        id="query",
        group=_READING,
        summary="Run a SQL statement; rows as JSON, or else an Arrow stream.",
        successes={200: Success("The rows.", "Rows")},
        refusals=(400, 415, 422, 429, 500, 501, 503),
    ),
    # --- Snapshots ------------------------------------------------------------------------------
    ("GET", "/perdure/snapshots"): Operation(
        id="get_snapshots",
        group=_NODE,
        summary="Where snapshots go, the sets that can be restored, and what went wrong last.",
        successes={200: Success("They.", "Snapshots")},
    ),
    ("POST", "/perdure/snapshots"): Operation(
        id="create_snapshots",
        group=_NODE,
        summary="Take snapshots of all partitions now, as a set.",
        successes={
            200: Success("The set.", "SnapshotSet"),
            202: Success("It takes long, and goes on: see `is_taking`.", "Taking"),
        },
        refusals=(409, 500, 503),
    ),
    # --- The cluster ----------------------------------------------------------------------------
    ("GET", "/perdure/cluster"): Operation(
        id="get_cluster",
        group=_CLUSTER,
        summary="How the cluster stands as this node sees it; what is wrong comes first.",
        successes={200: Success("It.", "ClusterStanding")},
    ),
    ("GET", "/perdure/nodes"): Operation(
        id="list_nodes",
        group=_CLUSTER,
        summary="All nodes that were not removed.",
        successes={200: Success("They.", "Nodes")},
    ),
    ("GET", "/perdure/nodes/{node}"): Operation(
        id="get_node",
        group=_CLUSTER,
        summary="A node, by name or number, and what keeps it from being removed.",
        successes={200: Success("It.", "NodeDetail")},
        refusals=(404,),
    ),
    ("DELETE", "/perdure/nodes/{node}"): Operation(
        id="remove_node",
        group=_CLUSTER,
        summary="Take a node out for good, once nothing holds it any more.",
        successes={200: Success("It was removed.", "NodeRemoved")},
        refusals=(404, 409, 503),
    ),
    **{
        ("PATCH", f"/perdure/nodes/{{node}}/{verb}"): Operation(
            id=f"{verb.replace('-', '_')}_node",
            group=_CLUSTER,
            summary=summary,
            successes={200: Success("The node as it is now.", "NodeDetail")},
            refusals=(404, 409, 503),
        )
        for verb, summary in (
            ("drain", "Begin to move everything off a node: leaders, tables, log."),
            ("undrain", "Give work to a node again."),
            ("resume", "Let a node offer its storage again, from its next start."),
            ("mark-lost", "Say that the disk of a node that is gone will never come back."),
        )
    },
    **OPERATOR_OPERATIONS,
    ("GET", "/perdure/partitions"): Operation(
        id="list_partitions",
        group=_CLUSTER,
        summary="All partitions: leader, epoch, replicas and how far they are.",
        successes={200: Success("They.", "Partitions")},
    ),
    ("GET", "/perdure/partitions/{partition}"): Operation(
        id="get_partition",
        group=_CLUSTER,
        summary="One partition.",
        successes={200: Success("It.", "Partition")},
        refusals=(404,),
    ),
    ("PATCH", "/perdure/partitions/{partition}/lead"): Operation(
        id="lead_partition",
        group=_CLUSTER,
        summary="Have the leader hand over to a node, once; balance may move it again.",
        successes={
            200: Success("That node leads.", "Partition"),
            202: Success("It was asked for, and takes longer.", "Partition"),
        },
        refusals=(400, 404, 409),
        query={"to": _TEXT},
    ),
    ("PATCH", "/perdure/partitions/{partition}/pin"): Operation(
        id="pin_partition",
        group=_CLUSTER,
        summary="Want a node to lead whenever it can.",
        successes={200: Success("The partition as it is now.", "Partition")},
        refusals=(400, 404, 409, 503),
        query={"to": _TEXT},
    ),
    **{
        ("PATCH", f"/perdure/partitions/{{partition}}/{verb}"): Operation(
            id=f"{verb}_partition",
            group=_CLUSTER,
            summary=summary,
            successes={200: Success("The partition as it is now.", "Partition")},
            refusals=(404, 409, 503),
        )
        for verb, summary in (
            ("unpin", "Want no node in particular to lead."),
            ("freeze", "Don't move the leader for balance."),
            ("unfreeze", "Let balance move the leader again."),
        )
    },
    # --- What is not here -----------------------------------------------------------------------
    ("GET", "/kafka-clusters"): Operation(
        id="list_kafka_clusters",
        group=_ABSENT,
        summary="None.",
        successes={200: Success("An empty list.", "Clusters")},
    ),
    ("POST", "/kafka-clusters"): _absent("create_kafka_cluster"),
    ("GET", "/kafka-clusters/{name}"): _absent("get_kafka_cluster", 404),
    ("PATCH", "/kafka-clusters/{name}"): _absent("update_kafka_cluster", 404),
    ("DELETE", "/kafka-clusters/{name}"): _absent("delete_kafka_cluster", 404),
    ("GET", "/subscriptions"): Operation(
        id="list_subscriptions",
        group=_ABSENT,
        summary="None.",
        successes={200: Success("An empty list.", "Subscriptions")},
    ),
    ("POST", "/subscriptions"): _absent("create_subscription"),
    ("GET", "/subscriptions/{id}"): _absent("get_subscription", 404),
    ("DELETE", "/subscriptions/{id}"): _absent("delete_subscription", 404),
    ("PUT", "/limits/rules"): _absent("put_rules"),
    ("POST", "/limits/rules/bulk-delete"): _absent("delete_rules"),
    ("POST", "/vqueues/{id}/pause"): _absent("pause_queue"),
    ("POST", "/vqueues/{id}/resume"): _absent("resume_queue"),
}
