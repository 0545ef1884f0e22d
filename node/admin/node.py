"""The node itself: is it well, what does it speak, where is its ingress."""

import perdure
from perdure.core.errors import PartitionUnavailable
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.requests import Reply, Request, empty_reply, json_reply
from perdure.node.admin.routes import VERSION_MAX, VERSION_MIN, Route

# Clients choose their requests by this version of the API they know, not by perdure's own.
COMPATIBLE_VERSION = "1.7.0"
_NODE_ID = 1


async def health(context: Context, request: Request) -> Reply:
    """200 as long as the node serves everything; see the node's own port for whether it lives."""
    context.check_serving()
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
    """Name and members of the cluster: so far, this node."""
    return json_reply(
        200,
        {
            "cluster_name": context.discovery.cluster_name,
            "metadata_cluster_health": {"members": [_NODE_ID]},
        },
    )


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/health", health),
    Route("GET", "/version", version),
    Route("GET", "/cluster-health", cluster_health),
]
