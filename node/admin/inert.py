"""What compatible clients ask about and perdure doesn't have: empty lists and clear refusals."""

from perdure.core.errors import NotFound, NotImplementedHere
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.requests import Reply, Request, json_reply
from perdure.node.admin.routes import Route


async def no_clusters(context: Context, request: Request) -> Reply:
    """There are no Kafka clusters."""
    return json_reply(200, {"clusters": []})


async def no_subscriptions(context: Context, request: Request) -> Reply:
    """There are no subscriptions."""
    return json_reply(200, {"subscriptions": []})


async def none_of_this_name(context: Context, request: Request) -> Reply:
    """There is no such thing."""
    raise NotFound(f"there is no {next(iter(request.parameters.values()))!r} here")


async def unavailable(context: Context, request: Request) -> Reply:
    """The feature doesn't exist."""
    raise NotImplementedHere("perdure has no Kafka ingestion and no limits by rules")


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/kafka-clusters", no_clusters),
    Route("POST", "/kafka-clusters", unavailable),
    Route("GET", "/kafka-clusters/{name}", none_of_this_name),
    Route("PATCH", "/kafka-clusters/{name}", none_of_this_name),
    Route("DELETE", "/kafka-clusters/{name}", none_of_this_name),
    Route("GET", "/subscriptions", no_subscriptions),
    Route("POST", "/subscriptions", unavailable),
    Route("GET", "/subscriptions/{id}", none_of_this_name),
    Route("DELETE", "/subscriptions/{id}", none_of_this_name),
    Route("PUT", "/limits/rules", unavailable),
    Route("POST", "/limits/rules/bulk-delete", unavailable),
    Route("POST", "/vqueues/{id}/pause", unavailable),
    Route("POST", "/vqueues/{id}/resume", unavailable),
]
