"""The logs of partitions for operators: their chains, comparing replicas, ending open segments.

A segment is only ever followed by a take-over: the one register that is written here allows that to
do without replicas that are lost.
"""

import asyncio

from perdure.cluster.core.chain import closed_unsafely, open_segment
from perdure.cluster.core.types import NodeId
from perdure.core.errors import BadRequest, MembershipRefused, NotFound, PartitionUnavailable
from perdure.core.limits import FD_TICK_MS, HAND_OVER_MS
from perdure.node.admin.cluster import find_partition, plane_of
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.log_rows import (
    log_detail,
    log_row,
    seal_row,
    unsafe_row,
    verification_row,
)
from perdure.node.admin.requests import Reply, Request, json_reply
from perdure.node.admin.routes import Route
from perdure.node.log_desk import LogDesk
from perdure.node.standing import PartitionStanding

_SEGMENT_MAX = (1 << 32) - 1
_NAME_MAX = 100


async def list_logs(context: Context, request: Request) -> Reply:
    """All of them."""
    seen = context.cluster.standing()
    return json_reply(200, {"logs": [log_row(part, seen) for part in seen.partitions]})


async def get_log(context: Context, request: Request) -> Reply:
    """One, segment by segment."""
    seen = context.cluster.standing()
    return json_reply(200, log_detail(find_partition(seen, request), seen))


async def verify(context: Context, request: Request) -> Reply:
    """Begin to compare replicas, unless that is under way."""
    desk, part = await _fresh(context, request)
    found = desk.verify(part.partition, part.meta)
    return json_reply(202, verification_row(found, context.cluster.standing()))


async def get_verification(context: Context, request: Request) -> Reply:
    """How the latest comparison here went, or goes."""
    seen = context.cluster.standing()
    part = find_partition(seen, request)
    found = _desk(context).verification(part.partition)
    if found is None:
        raise NotFound(
            f"the replicas of partition {part.partition} were not compared by this node since it "
            f"started: `perdure log verify {part.partition}` does it"
        )
    return json_reply(200, verification_row(found, seen))


async def seal(context: Context, request: Request) -> Reply:
    """End the open segment, whatever its leader does."""
    plane_of(context)
    desk, part = await _fresh(context, request)
    done = await desk.seal(part.partition, part.meta)
    return json_reply(200, seal_row(part, done, context.cluster.standing()))


async def reconfigure(context: Context, request: Request) -> Reply:
    """Have the leader go on in a new segment, on the log servers that are best now; 202 when that
    takes longer."""
    plane = plane_of(context)
    _, part = await _fresh(context, request)
    opened = open_segment(part.meta)
    if part.leader is None or opened is None:
        raise MembershipRefused(f"nobody is known to lead partition {part.partition} now")
    plane.hand_over(part.partition, part.leader)
    before = part.meta.epoch
    deadline = context.clock.monotonic() + HAND_OVER_MS / 1000
    while not _is_reopened(part, before) and context.clock.monotonic() < deadline:
        await asyncio.sleep(FD_TICK_MS / 1000)
        plane.membership.look_at(part.partition)
        part = find_partition(context.cluster.standing(), request)
    status = 200 if _is_reopened(part, before) else 202
    return json_reply(status, log_detail(part, context.cluster.standing()))


async def examine_unsafe_close(context: Context, request: Request) -> Reply:
    """What is left of the open segment, and whether it may be closed with that. Changes nothing."""
    plane = plane_of(context)
    desk, part = await _fresh(context, request)
    nodes = plane.membership.nodes
    found = await desk.unsafe.examine(part.partition, part.meta, nodes, _tables(part))
    return json_reply(200, unsafe_row(part, found, context.cluster.standing()))


async def close_unsafely(context: Context, request: Request) -> Reply:
    """Allow it, and wait until it is done; 202 when that takes longer."""
    plane = plane_of(context)
    desk, part = await _fresh(context, request)
    segment = request.number("segment", -1, 0, _SEGMENT_MAX)
    opened = open_segment(part.meta)
    if segment < 0 or opened is None or opened.index != segment:
        index = opened.index if opened is not None else "none"
        raise BadRequest(f"query parameter 'segment': name the open segment, which is {index}")
    nodes = plane.membership.nodes
    found = await desk.unsafe.examine(part.partition, part.meta, nodes, _tables(part))
    by = request.query.get("by", "")[:_NAME_MAX] or "somebody"
    await desk.unsafe.allow(plane.membership, part.partition, found, by)
    deadline = context.clock.monotonic() + HAND_OVER_MS / 1000
    while True:
        part = find_partition(context.cluster.standing(), request)
        is_done = closed_unsafely(part.meta, segment) is not None
        if is_done or context.clock.monotonic() >= deadline:
            row = unsafe_row(part, found, context.cluster.standing())
            return json_reply(200 if is_done else 202, row)
        await asyncio.sleep(FD_TICK_MS / 1000)
        plane.membership.look_at(part.partition)


def _tables(part: PartitionStanding) -> dict[NodeId, int]:
    """Of nodes that live. After an earlier close, those that can't go on may have what it cut."""
    without = ("gone", "unknown", "absent") if part.meta.unsafe else ("gone", "unknown")
    return {item.node: item.applied_lsn for item in part.replicas if item.role not in without}


def _is_reopened(part: PartitionStanding, before: int) -> bool:
    opened = open_segment(part.meta)
    return opened is not None and opened.epoch > before and part.leader is not None


async def _fresh(context: Context, request: Request) -> tuple[LogDesk, PartitionStanding]:
    """The partition as its register is now."""
    if context.cluster.plane is not None:
        find_partition(context.cluster.standing(), request)
        await context.cluster.plane.membership.refresh()
    return _desk(context), find_partition(context.cluster.standing(), request)


def _desk(context: Context) -> LogDesk:
    if context.cluster.logs is None:
        raise PartitionUnavailable("this node has no log open")
    return context.cluster.logs


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/perdure/logs", list_logs),
    Route("GET", "/perdure/logs/{partition}", get_log),
    Route("POST", "/perdure/logs/{partition}/verify", verify),
    Route("GET", "/perdure/logs/{partition}/verify", get_verification),
    Route("PATCH", "/perdure/logs/{partition}/seal", seal),
    Route("PATCH", "/perdure/logs/{partition}/reconfigure", reconfigure),
    Route("GET", "/perdure/logs/{partition}/unsafe-close", examine_unsafe_close),
    Route("PATCH", "/perdure/logs/{partition}/unsafe-close", close_unsafely),
]
