"""Snapshots of this node: how they stand, and taking one now."""

import asyncio

from perdure.core.errors import SnapshotsUnavailable
from perdure.core.limits_snapshots import SNAPSHOT_ANSWER_MS
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.requests import Reply, Request, json_reply
from perdure.node.admin.routes import Route
from perdure.node.admin.snapshot_rows import set_row
from perdure.node.partition.snapshotter import NO_DESTINATION
from perdure.storage.snapshot_format import SnapshotSet


async def get_snapshots(context: Context, request: Request) -> Reply:
    """Destination, sets, and what went wrong last."""
    snapshotter = context.snapshots
    if snapshotter is None:
        return json_reply(200, {"destination": None, "sets": []})
    figures = snapshotter.statistics()
    document: dict[str, object] = {
        "destination": figures.destination,
        "is_sound": figures.is_sound,
        "is_taking": figures.is_taking,
        "failures": figures.failures,
        "stored_bytes": figures.stored_bytes,
        "sets": [set_row(document) for document in snapshotter.sets],
    }
    if figures.fault is not None:
        document["fault"] = figures.fault
    if figures.last_failure is not None:
        document["last_failure"] = figures.last_failure
    return json_reply(200, document)


async def create_snapshots(context: Context, request: Request) -> Reply:
    """Take a set now; 202 when that takes long, and it goes on."""
    if context.snapshots is None:
        raise SnapshotsUnavailable(NO_DESTINATION)
    taking = asyncio.ensure_future(context.snapshots.create())
    taking.add_done_callback(_look_at)
    done, _ = await asyncio.wait([taking], timeout=SNAPSHOT_ANSWER_MS / 1000)
    if not done:
        return json_reply(202, {"is_taking": True})
    return json_reply(200, set_row(taking.result()))


def _look_at(taking: "asyncio.Future[SnapshotSet]") -> None:
    if not taking.cancelled():
        taking.exception()  # who asked may be gone; the snapshotter's log and figures have it


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/perdure/snapshots", get_snapshots),
    Route("POST", "/perdure/snapshots", create_snapshots),
]
