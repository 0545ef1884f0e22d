"""Who votes on the cluster's metadata, and having others do it."""

import asyncio

from perdure.cluster.core.failure_detector import NodeState
from perdure.cluster.core.membership import MemberState, NodeRole
from perdure.cluster.metadata.provision import draw_storages
from perdure.cluster.metadata.quorum import (
    QUORUM_KEY,
    Quorum,
    Quorums,
    begin_move,
    decode_quorums,
)
from perdure.cluster.metadata.store import MetadataStore
from perdure.cluster.registers import edit_register
from perdure.core.errors import BadRequest, MembershipRefused, MetadataUnavailable
from perdure.core.limits import FD_TICK_MS, QUORUM_MOVE_MS
from perdure.node.admin.cluster import find_node, plane_of
from perdure.node.admin.cluster_rows import Document
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.requests import Reply, Request, json_reply
from perdure.node.admin.routes import Route
from perdure.node.standing import NodeStanding


async def get_voters(context: Context, request: Request) -> Reply:
    """Who votes now, and who is to."""
    store = plane_of(context).membership.store
    return json_reply(200, _row(context, await _read(store)))


async def set_voters(context: Context, request: Request) -> Reply:
    """Have these nodes hold the metadata; 202 when they don't in time, but will."""
    store = plane_of(context).membership.store
    names = [name for name in request.query.get("names", "").split(",") if name]
    seen = context.cluster.standing()
    chosen = [find_node(seen, name) for name in names]
    if not chosen:
        raise BadRequest("name the nodes: ?names=NODE,NODE,NODE")
    wanted = _plan(context, chosen)
    known = await _read(store)
    has_disks = known.current is None or known.current.disks == wanted.disks
    if set(wanted.members) != _voting(context) or not has_disks:
        await edit_register(store, QUORUM_KEY, Quorums, lambda known: begin_move(known, wanted))
    return await _wait(context, store, set(wanted.members))


def _plan(context: Context, chosen: list[NodeStanding]) -> Quorum:
    voting = _voting(context)
    if not voting:
        raise MembershipRefused("no node votes: the metadata is kept in an etcd")
    for node in chosen:
        if node.state is not NodeState.ALIVE:
            raise MembershipRefused(
                f"node {node.value.name!r} is {node.state.value}: only nodes that are there can "
                "take the metadata over"
            )
        if NodeRole.METADATA not in node.value.roles:
            raise MembershipRefused(f"node {node.value.name!r} may hold no metadata")
    # In the order of their ids: the same nodes make the same list.
    chosen = sorted(chosen, key=lambda node: node.node)
    places = range(1, len(chosen) + 1)
    return Quorum(
        number=0,
        cluster=context.cluster.standing().cluster.fingerprint,
        members={node.value.name: node.value.addresses.fabric for node in chosen},
        storages=draw_storages(places, context.entropy),
        disks=dict(zip(places, (node.value.storage_uuid for node in chosen), strict=True)),
    )


async def _wait(context: Context, store: MetadataStore, names: set[str]) -> Reply:
    """It takes a second or two, in which the metadata does not answer."""
    deadline = context.clock.monotonic() + QUORUM_MOVE_MS / 1000
    found = Quorums()
    while context.clock.monotonic() < deadline:
        try:
            found = await _read(store)
        except MetadataUnavailable:
            continue  # that took its time
        plane_of(context).membership.look_again()
        if found.following is None and _voting(context) == names:
            return json_reply(200, _row(context, found))
        await asyncio.sleep(FD_TICK_MS / 1000)
    return json_reply(202, _row(context, found))


async def _read(store: MetadataStore) -> Quorums:
    found = await store.get(QUORUM_KEY)
    return decode_quorums(found.value) if found is not None else Quorums()


def _voting(context: Context) -> set[str]:
    nodes = context.cluster.standing().nodes
    return {node.value.name for node in nodes if node.value.metadata is MemberState.VOTER}


def _row(context: Context, quorums: Quorums) -> Document:
    following = quorums.following
    row: Document = {"quorum": quorums.number, "voters": sorted(_voting(context))}
    if following is not None:
        row["following"] = list(following.members)
    return row


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/perdure/metadata/voters", get_voters),
    Route("PATCH", "/perdure/metadata/voters", set_voters),
]
