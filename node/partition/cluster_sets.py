"""Sets of snapshots of a cluster: one node has the leaders of all partitions take their part.

The steps, and why they make one moment of it: ``cluster_cut.py``.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from perdure.cluster.control import ControlPlane
from perdure.cluster.core import chain
from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Transport
from perdure.core.entropy import Entropy
from perdure.core.errors import SnapshotsUnavailable
from perdure.core.ids import PartitionId
from perdure.core.limits import ROUTE_ASK_MS
from perdure.core.limits_snapshots import SNAPSHOT_CUT_MS, SNAPSHOT_STORE_MS
from perdure.node.partition.cluster_cut import FREEZE, HOLD, PAUSE, CutDesk
from perdure.node.partition.cut import Counters, check_cut
from perdure.node.partition.messages import CutStep, ReleaseCut, StoreCut
from perdure.storage.snapshot_format import SetMember

T = TypeVar("T")

_TOKEN_BITS = 60
# The flushes of a hold and of a freeze may take a while; standing still may not.
_STEP_MS = {HOLD: SNAPSHOT_CUT_MS, PAUSE: ROUTE_ASK_MS, FREEZE: SNAPSHOT_CUT_MS}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSetsPorts:
    """``desk``: of this node. ``registry``: what is registered now, encoded, as metadata has it."""

    plane: ControlPlane
    transport: Transport
    desk: CutDesk
    leader_of: Callable[[PartitionId], NodeId | None]
    registry: Callable[[], Awaitable[bytes]]
    entropy: Entropy
    partition_count: int


class ClusterSets:
    """Implements ``Together``."""

    def __init__(self, ports: ClusterSetsPorts) -> None:
        self._ports = ports

    @property
    def is_our_turn(self) -> bool:
        """The controller takes them; should two nodes believe that they are it, one is refused."""
        return self._ports.plane.controller.core.is_active

    def applied(self) -> Mapping[int, int]:
        """How far partitions are, as far as their leaders have told."""
        plane = self._ports.plane
        found: dict[int, int] = {}
        for partition, meta in plane.membership.partitions.items():
            opened = chain.open_segment(meta)
            if opened is not None:
                report = plane.detector.replica_report(opened.writer, partition)
                if report is not None:
                    found[partition] = report.applied_lsn
        return found

    async def take(self, pinned: frozenset[str]) -> tuple[list[SetMember], bytes]:
        """Snapshots of all partitions at one moment, all of which count, and the registry.

        Raises:
            PerdureError: why there are none.
        """
        leaders = self._leaders()
        token = self._ports.entropy.bits(_TOKEN_BITS)
        try:
            for step in (HOLD, PAUSE):
                await self._step(leaders, token, step)
            counters = await self._step(leaders, token, FREEZE)
            check_cut(counters)
            # Behind that moment: it has all deployments that invocations are bound to.
            registry = await self._ports.registry()
            members = await self._everywhere(
                leaders, lambda node, _: self._store(node, token, pinned)
            )
        except BaseException:  # bulkhead: have everybody go on, and raise it again
            for node in leaders:
                self._release(node, token)
            raise
        return sorted(members, key=lambda member: member.partition), registry

    # --- Steps ----------------------------------------------------------------------------------

    def _leaders(self) -> dict[NodeId, list[int]]:
        found: dict[NodeId, list[int]] = {}
        for partition in range(self._ports.partition_count):
            node = self._ports.leader_of(PartitionId(partition))
            if node is None:
                raise SnapshotsUnavailable(f"partition {partition} has no leader now")
            found.setdefault(node, []).append(partition)
        return found

    async def _step(
        self, leaders: Mapping[NodeId, Sequence[int]], token: int, step: str
    ) -> list[Counters]:
        return await self._everywhere(
            leaders, lambda node, partitions: self._ask(node, token, step, partitions)
        )

    async def _everywhere(
        self,
        leaders: Mapping[NodeId, Sequence[int]],
        ask: Callable[[NodeId, Sequence[int]], Awaitable[Sequence[T]]],
    ) -> list[T]:
        """What all of them answer; when one fails the others are not waited for."""
        asking = [
            asyncio.ensure_future(ask(node, partitions)) for node, partitions in leaders.items()
        ]
        try:
            answers = await asyncio.gather(*asking)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return [item for answer in answers for item in answer]

    async def _ask(
        self, node: NodeId, token: int, step: str, partitions: Sequence[int]
    ) -> Sequence[Counters]:
        ports = self._ports
        if node == ports.transport.me.node:
            return await ports.desk.step(token, step, partitions)
        request = CutStep(token, step, tuple(partitions))
        done = await ports.transport.ask(node, request, _STEP_MS[step] / 1000)
        return done.counters

    async def _store(self, node: NodeId, token: int, pinned: frozenset[str]) -> Sequence[SetMember]:
        ports = self._ports
        if node == ports.transport.me.node:
            return await ports.desk.store(token, pinned)
        request = StoreCut(token, tuple(sorted(pinned)))
        stored = await ports.transport.ask(node, request, SNAPSHOT_STORE_MS / 1000)
        return stored.members

    def _release(self, node: NodeId, token: int) -> None:
        if node == self._ports.transport.me.node:
            self._ports.desk.release(token)
        else:
            self._ports.transport.send(node, ReleaseCut(token))
