"""The cluster for its operators: how it stands, and what they may ask of nodes and partitions.

Every change is an edit of one register, or a message to a leader; the controller and the leaders do
the rest. A single node tells how it stands, and refuses the changes.
"""

import asyncio
from collections.abc import Callable

from perdure.cluster.control import ControlPlane
from perdure.cluster.core import chain
from perdure.cluster.core import membership as edits
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.controller import freeze, pin
from perdure.cluster.core.membership import NodeMeta
from perdure.cluster.core.types import NodeId
from perdure.core.errors import BadRequest, MembershipRefused, NotFound
from perdure.core.limits import FD_TICK_MS, HAND_OVER_MS
from perdure.node.admin.cluster_rows import (
    cluster_document,
    node_detail,
    node_row,
    partition_row,
)
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.requests import Reply, Request, json_reply
from perdure.node.admin.routes import Route
from perdure.node.standing import ClusterStanding, NodeStanding, PartitionStanding

_DIGITS_MAX = 9


# --- How it stands ------------------------------------------------------------------------------


async def get_cluster(context: Context, request: Request) -> Reply:
    """All on one page, as this node sees it."""
    return json_reply(200, cluster_document(context.cluster.standing()))


async def list_nodes(context: Context, request: Request) -> Reply:
    """Nodes that were not removed."""
    seen = context.cluster.standing()
    return json_reply(200, {"nodes": [node_row(node, seen) for node in seen.nodes]})


async def get_node(context: Context, request: Request) -> Reply:
    """A node, and what holds it."""
    seen = context.cluster.standing()
    return json_reply(200, node_detail(find_node(seen, request.parameters["node"]), seen))


async def list_partitions(context: Context, request: Request) -> Reply:
    """All partitions."""
    seen = context.cluster.standing()
    return json_reply(200, {"partitions": [partition_row(part, seen) for part in seen.partitions]})


async def get_partition(context: Context, request: Request) -> Reply:
    """One partition."""
    seen = context.cluster.standing()
    return json_reply(200, partition_row(find_partition(seen, request), seen))


# --- Nodes --------------------------------------------------------------------------------------


async def drain(context: Context, request: Request) -> Reply:
    """Begin to move everything off a node."""
    plane = plane_of(context)
    cluster = context.cluster.standing().cluster
    node = find_node(context.cluster.standing(), request.parameters["node"]).node

    def change(known: NodeMeta) -> NodeMeta:
        nodes = {**plane.membership.nodes, node: known}
        return edits.drain(nodes, node, cluster.replication)

    return await _edit_node(context, node, change)


async def undrain(context: Context, request: Request) -> Reply:
    """Give work to a node again."""
    return await _edit_named(context, request, edits.undrain)


async def resume(context: Context, request: Request) -> Reply:
    """Let a node offer its storage again, from its next start."""
    return await _edit_named(context, request, edits.resume)


async def mark_lost(context: Context, request: Request) -> Reply:
    """An operator says that a node's disk will not come back."""
    plane = plane_of(context)
    node = find_node(context.cluster.standing(), request.parameters["node"])
    if not plane.detector.state(node.node).is_gone:
        raise MembershipRefused(
            f"node {node.value.name!r} is {node.state.value}: stop it first, if its disk is lost"
        )
    return await _edit_node(context, node.node, edits.mark_lost)


async def remove(context: Context, request: Request) -> Reply:
    """Take a drained node out, for good."""
    plane = plane_of(context)
    await plane.membership.refresh()  # what holds it may be newer than what this node has seen
    node = find_node(context.cluster.standing(), request.parameters["node"])

    def change(known: NodeMeta) -> NodeMeta:
        nodes = {**plane.membership.nodes, node.node: known}
        return edits.remove(nodes, node.node, plane.membership.partitions)

    await plane.membership.edit_node(node.node, change)
    return json_reply(200, {"name": node.value.name, "id": node.node, "is_removed": True})


async def _edit_named(
    context: Context, request: Request, change: Callable[[NodeMeta], NodeMeta]
) -> Reply:
    plane_of(context)
    node = find_node(context.cluster.standing(), request.parameters["node"])
    return await _edit_node(context, node.node, change)


async def _edit_node(
    context: Context, node: NodeId, change: Callable[[NodeMeta], NodeMeta]
) -> Reply:
    await plane_of(context).membership.edit_node(node, change)
    seen = context.cluster.standing()
    return json_reply(200, node_detail(find_node(seen, str(node)), seen))


# --- Partitions ---------------------------------------------------------------------------------


async def lead(context: Context, request: Request) -> Reply:
    """Have the leader hand over; 202 when the new one doesn't lead in time."""
    plane = plane_of(context)
    seen = context.cluster.standing()
    part, to = find_partition(seen, request), _to(seen, request)
    if part.leader != to.node:
        plane.hand_over(part.partition, to.node)
    deadline = context.clock.monotonic() + HAND_OVER_MS / 1000
    while part.leader != to.node and context.clock.monotonic() < deadline:
        await asyncio.sleep(FD_TICK_MS / 1000)
        plane.membership.look_at(part.partition)
        seen = context.cluster.standing()
        part = find_partition(seen, request)
    return json_reply(200 if part.leader == to.node else 202, partition_row(part, seen))


async def pin_partition(context: Context, request: Request) -> Reply:
    """Want a node to lead whenever it can."""
    node = _to(context.cluster.standing(), request).node
    return await _edit_partition(context, request, lambda meta: pin(meta, node))


async def unpin_partition(context: Context, request: Request) -> Reply:
    """Want nobody in particular."""
    return await _edit_partition(context, request, lambda meta: pin(meta, None))


async def freeze_partition(context: Context, request: Request) -> Reply:
    """No hand-over for balance."""
    return await _edit_partition(context, request, lambda meta: freeze(meta, True))


async def unfreeze_partition(context: Context, request: Request) -> Reply:
    """Balance may move the leader again."""
    return await _edit_partition(context, request, lambda meta: freeze(meta, False))


async def _edit_partition(
    context: Context, request: Request, change: Callable[[PartitionMeta], PartitionMeta]
) -> Reply:
    plane = plane_of(context)
    partition = find_partition(context.cluster.standing(), request).partition
    await plane.membership.edit_partition(
        partition, lambda known: change(known if known is not None else chain.empty())
    )
    seen = context.cluster.standing()
    return json_reply(200, partition_row(find_partition(seen, request), seen))


# --- Finding ------------------------------------------------------------------------------------


def plane_of(context: Context) -> ControlPlane:
    """The control plane; a single node has none.

    Raises:
        MembershipRefused: this is one.
    """
    if context.cluster.plane is None:
        raise MembershipRefused(
            "this is a single node: there is nobody to move anything to. `perdure cluster promote` "
            "makes it the first of several"
        )
    return context.cluster.plane


def find_node(seen: ClusterStanding, text: str) -> NodeStanding:
    """By name, or else by number (``3`` or ``N3``)."""
    for node in seen.nodes:
        if node.value.name == text:
            return node
    number = text.removeprefix("N")
    for node in seen.nodes:
        if number == str(node.node):
            return node
    names = ", ".join(node.value.name for node in seen.nodes)
    raise NotFound(f"there is no node {text!r}: the nodes are {names}")


def find_partition(seen: ClusterStanding, request: Request) -> PartitionStanding:
    """The partition that the path names.

    Raises:
        NotFound: there is none.
    """
    text = request.parameters["partition"]
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX:
        for part in seen.partitions:
            if part.partition == int(text):
                return part
    raise NotFound(f"there is no partition {text!r}: they are 0 to {len(seen.partitions) - 1}")


def _to(seen: ClusterStanding, request: Request) -> NodeStanding:
    text = request.query.get("to")
    if text is None:
        raise BadRequest("name the node: ?to=NODE")
    return find_node(seen, text)


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/perdure/cluster", get_cluster),
    Route("GET", "/perdure/nodes", list_nodes),
    Route("GET", "/perdure/nodes/{node}", get_node),
    Route("DELETE", "/perdure/nodes/{node}", remove),
    Route("PATCH", "/perdure/nodes/{node}/drain", drain),
    Route("PATCH", "/perdure/nodes/{node}/undrain", undrain),
    Route("PATCH", "/perdure/nodes/{node}/resume", resume),
    Route("PATCH", "/perdure/nodes/{node}/mark-lost", mark_lost),
    Route("GET", "/perdure/partitions", list_partitions),
    Route("GET", "/perdure/partitions/{partition}", get_partition),
    Route("PATCH", "/perdure/partitions/{partition}/lead", lead),
    Route("PATCH", "/perdure/partitions/{partition}/pin", pin_partition),
    Route("PATCH", "/perdure/partitions/{partition}/unpin", unpin_partition),
    Route("PATCH", "/perdure/partitions/{partition}/freeze", freeze_partition),
    Route("PATCH", "/perdure/partitions/{partition}/unfreeze", unfreeze_partition),
]
