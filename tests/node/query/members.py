"""Two nodes that lead one engine's partitions between them, and ask each other over a real fabric.

What a node doesn't lead it hasn't got: its own tables of that are empty.
"""

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from tests.cluster.fabric_rig import Member, Rig
from tests.engine.world import Partition, World

from perdure.cluster.core.types import NodeId
from perdure.core.clock import SystemClock
from perdure.core.errors import PartitionUnavailable
from perdure.core.ids import InvocationId, PartitionId, partition_key_of, partition_of
from perdure.node.invoker.run import RunStatistics
from perdure.node.partition.gateway import LedPartition
from perdure.node.partition.members import Members
from perdure.node.query.query import Query, QueryLimits
from perdure.node.registry.model import Registry
from perdure.storage.env import Snapshot
from perdure.storage.tables.journal import AttemptFailure

PARTITIONS = 4
Row = dict[str, Any]


class _Tables:
    """The tables of a partition; counts what is held of them."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.held = 0

    def snapshot(self) -> Snapshot:
        held = self._partition.env.snapshot()
        self.held += 1
        release = held.close

        def close() -> None:
            self.held -= 1
            release()

        held.close = close  # type: ignore[method-assign]
        return held


class Led:
    """A partition on a node. ``is_right``: it leads as it thinks; ``is_silent``: it can't tell."""

    def __init__(self, partition: Partition, is_leading: bool) -> None:
        self.is_leading = is_leading
        self.is_right = True
        self.is_silent = False
        self.refusals = 0
        self.runs: list[Any] = []
        self.tables = _Tables(partition)
        self.flushes = 0
        self._partition = partition

    async def confirm(self) -> None:
        if self.is_silent:
            await asyncio.get_running_loop().create_future()
        if not self.is_leading or not self.is_right:
            self.refusals += 1
            raise PartitionUnavailable("somebody else leads by now")

    def flush(self, on_flushed: Callable[[], None]) -> None:
        self.flushes += 1
        self._partition.flush()
        on_flushed()

    def as_led(self) -> LedPartition:
        """As the node sees it."""
        processor = SimpleNamespace(
            halted=None,
            is_flushed=lambda: False,
            flush=self.flush,
            store=SimpleNamespace(env=self.tables),
        )
        led = self

        class Leader:
            confirm = staticmethod(self.confirm)
            invoker = SimpleNamespace(runs=lambda: self.runs)

            @property
            def is_leading(self) -> bool:
                return led.is_leading

        return LedPartition(cast(Any, processor), cast(Any, Leader()))


class Node:
    """One of the two. ``leaders`` is what it believes, by partition."""

    def __init__(
        self, member: Member, world: World, leaders: dict[int, int], limits: QueryLimits
    ) -> None:
        empty = World(PARTITIONS)
        me = member.fabric.me.node
        self.member = member
        self.leaders = leaders
        self.led = [
            Led(
                world.partitions[each] if leaders[each] == me else empty.partitions[each],
                leaders[each] == me,
            )
            for each in range(PARTITIONS)
        ]
        self.asked_for = 0
        self.query = Query(
            [each.as_led() for each in self.led],
            Registry,
            SystemClock(),
            limits,
            Members(me, self, member.fabric),
        )

    def leader_of(self, partition: PartitionId) -> NodeId | None:
        self.asked_for += partition not in self.leaders
        node = self.leaders.get(partition)
        return NodeId(node) if node is not None else None

    @property
    def held(self) -> int:
        """Snapshots that somebody holds."""
        return sum(each.tables.held for each in self.led)

    def run(self, invocation: InvocationId, attempts: int) -> None:
        """Have a session that backs off."""
        failure = AttemptFailure(500, "it hurts")
        statistics = RunStatistics(
            is_running=False,
            is_backing_off=True,
            attempts=attempts,
            retries=attempts,
            failures_since_command=attempts,
            last_start_at_ms=1,
            next_retry_at_ms=2,
            deployment_id=None,
            server=None,
            failure=failure,
            awaiting_on=None,
        )
        number = partition_of(partition_key_of(invocation), PARTITIONS)
        run = SimpleNamespace(id=invocation, statistics=lambda: statistics)
        self.led[number].runs.append(run)

    async def ask(self, statement: str) -> list[Row]:
        """The rows of an answer."""
        answer = await self.query.answer(statement, as_json=True)
        body = answer.first
        if answer.rest is not None:
            async for piece in answer.rest:
                body += piece
        rows: list[Row] = json.loads(body)["rows"]
        return rows


async def two_nodes(rig: Rig, world: World, limits: QueryLimits) -> tuple[Node, Node]:
    """The first leads partitions 0 and 2, the other 1 and 3."""
    one, two = await rig.pair()
    leaders = {0: 1, 1: 2, 2: 1, 3: 2}
    return Node(one, world, dict(leaders), limits), Node(two, world, dict(leaders), limits)
