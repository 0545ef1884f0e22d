"""The node itself: is it well, what does it speak, where is its ingress."""

import perdure
from perdure.cluster.core.membership import MemberState
from perdure.core.errors import PartitionUnavailable
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.requests import Reply, Request, empty_reply, json_reply
from perdure.node.admin.routes import VERSION_MAX, VERSION_MIN, Route

# Clients choose their requests by this version of the API they know, not by perdure's own.
COMPATIBLE_VERSION = "1.7.0"


async def health(context: Context, request: Request) -> Reply:
    """200 as long as the node serves everything; see the node's own port for whether it lives."""
    context.check_serving()
    plane = context.cluster.plane
    if plane is not None and plane.detector.is_isolated:
        raise PartitionUnavailable("this node hears no other node of its cluster: ask another one")
    if halted := context.gateway.halted():
        names = ", ".join(str(partition) for partition in halted)
        raise PartitionUnavailable(
            f"halted partitions: {names} of {context.gateway.partition_count}; the others serve. "
            "Restart the node; if they halt again, keep the data directory and report it"
        )
    return empty_reply(200)


async def version(context: Context, request: Request) -> Reply:
    """The first request of every run of a client."""
    return json_reply(
        200,
        {
            "version": COMPATIBLE_VERSION,
            "min_admin_api_version": VERSION_MIN,
            "max_admin_api_version": VERSION_MAX,
            "ingress_endpoint": context.options.ingress_url,
            "features": {},
            "server": "perdure",
            "server_version": perdure.__version__,
        },
    )


async def cluster_health(context: Context, request: Request) -> Reply:
    """Name of the cluster, and the nodes that vote on its metadata; 503 without their quorum."""
    if context.cluster.plane is not None:
        await context.cluster.plane.membership.refresh()
    seen = context.cluster.standing()
    voters = [node.node for node in seen.nodes if node.value.metadata is MemberState.VOTER]
    return json_reply(
        200,
        {"cluster_name": seen.cluster.name, "metadata_cluster_health": {"members": voters}},
    )


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/health", health),
    Route("GET", "/version", version),
    Route("GET", "/cluster-health", cluster_health),
]
