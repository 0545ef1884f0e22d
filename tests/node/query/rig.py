"""Statements over engines in memory: the whole of node/query but for the event loop's part."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.engine.world import World

from perdure.core.clock import SystemClock
from perdure.core.ids import InvocationId
from perdure.node.query.live import Live
from perdure.node.query.pieces import Piece
from perdure.node.query.reading import Reading
from perdure.node.query.statements import Execution, plan
from perdure.node.registry.model import Registry

Row = dict[str, Any]
TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Asked:
    """The rows of an answer, and how many rows of tables were read for it."""

    rows: list[Row]
    rows_read: int


def collect(execution: Execution, timeout_seconds: float) -> bytes:
    """Run a statement and take its whole answer."""
    pieces: list[Piece] = []

    def deliver(piece: Piece) -> None:
        pieces.append(piece)
        piece.taken()

    execution.run(timeout_seconds, deliver)
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return b"".join(piece.data for piece in pieces)


def ask(world: World, statement: str, live: Mapping[InvocationId, Live] | None = None) -> Asked:
    """Flush, plan, run."""
    for partition in world.partitions:
        partition.flush()
    planned = plan(statement, world.partition_count)
    snapshots = {number: world.partitions[number].env.snapshot() for number in planned.partitions}
    reading = Reading(snapshots, live or {}, Registry(), SystemClock())
    try:
        body = collect(Execution(planned, reading, as_json=True), TIMEOUT_SECONDS)
    finally:
        reading.close()
    return Asked(json.loads(body)["rows"], reading.rows_read)
