"""Lets logs go: for each partition led here, up to what every replica has in its tables.

The leader trims its open segment on all its replicas and drops closed ones from the chain; each
node then frees the files in which nothing is left. While a partition has fewer replicas than it is
to have, nothing is trimmed: the ones that are still to come begin with its first record.
"""

import asyncio
from collections.abc import Callable, Mapping

from perdure.cluster.control import ControlPlane
from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.trim import (
    Durability,
    DurabilityMode,
    ReplicaDurability,
    TrimCore,
    TrimPolicy,
)
from perdure.cluster.core.types import NodeId
from perdure.core.clock import Clock
from perdure.core.errors import PerdureError
from perdure.core.limits import TRIM_LOOK_MS, TRIM_NAMED_MS
from perdure.core.telemetry import logger
from perdure.node.partition.replica import PartitionReplica

log = logger("partition")

# What every replica has synced in its tables is needed by none of them; but another one may have
# been named just now.
_POLICY = TrimPolicy(mode=DurabilityMode.REPLICAS, delay_ms=TRIM_NAMED_MS)


class Trimmer:
    """The partitions of one node; remembers what was trimmed while it leads."""

    def __init__(
        self, plane: ControlPlane, replicas: Mapping[int, PartitionReplica], clock: Clock
    ) -> None:
        self._plane = plane
        self._replicas = replicas
        self._clock = clock
        self._cores: dict[tuple[int, int], TrimCore] = {}

    async def run(self, recycle: Callable[[], None]) -> None:
        """Look now and then, until cancelled."""
        while True:
            await asyncio.sleep(TRIM_LOOK_MS / 1000)
            led = self._plane.leaderships.led()
            self._cores = {term: core for term, core in self._cores.items() if term in led}
            for partition, epoch in led:
                try:
                    await self._look(partition, epoch)
                except PerdureError as failure:
                    log.warning("partition.trim.failed", partition=partition, reason=failure)
            recycle()

    async def _look(self, partition: int, epoch: int) -> None:
        meta = self._plane.membership.partitions[partition]
        core = self._cores.setdefault((partition, epoch), TrimCore(_POLICY, meta.trim_lsn - 1))
        replica = self._replicas[partition]
        nodes = meta.replicas.named
        replicas = [self._durability(node, partition) for node in nodes]
        durability = Durability(
            committed_lsn=replica.committed_lsn,
            archived_lsn=None,
            replicas=replicas if len(meta.replicas.current) >= self._wanted() else [],
        )
        due = core.step(round(self._clock.monotonic() * 1000), durability)
        if due is None:
            return
        replica.trim(due + 1)
        if chain.trim_prefix(meta, due + 1) != meta:
            await self._plane.membership.edit_partition(
                partition, lambda known: _trimmed(known, due + 1)
            )

    def _wanted(self) -> int:
        """How many replicas a partition is to have, with the nodes that there are."""
        membership = self._plane.membership
        assert membership.cluster is not None  # read before anything is led
        workers = sum(value.may_work for value in membership.nodes.values())
        return min(membership.cluster.partition_replicas, workers)

    def _durability(self, node: NodeId, partition: int) -> ReplicaDurability:
        for report in self._plane.detector.report_of(node).replicas:
            if report.partition == partition:
                return ReplicaDurability(node=node, durable_lsn=report.durable_lsn)
        return ReplicaDurability(node=node, durable_lsn=0)


def _trimmed(known: PartitionMeta | None, below_lsn: int) -> PartitionMeta | None:
    if known is None:
        return None
    trimmed = chain.trim_prefix(known, below_lsn)
    return trimmed if trimmed != known else None
