"""Lets logs go: for each partition led here, as far as the mode of durability says.

The leader trims its open segment on all its replicas and drops closed ones from the chain; each
node then frees the files in which nothing is left. What has gone can be had as tables: from the
snapshots that count, or from replicas that have it in theirs. Without snapshots nothing is trimmed
while a partition has fewer replicas than it is to have: the ones that are still to come begin with
its first record.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from perdure.cluster.control import ControlPlane
from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.trim import (
    Durability,
    DurabilityMode,
    ReplicaDurability,
    TrimCore,
    TrimPolicy,
    TrimStatistics,
)
from perdure.cluster.core.types import NodeId
from perdure.core.clock import Clock
from perdure.core.errors import PerdureError
from perdure.core.limits_snapshots import DEAD_REPLICA_LAG_BYTES_MAX, TRIM_LOOK_MS, TRIM_NAMED_MS
from perdure.core.telemetry import logger
from perdure.node.partition.replica import PartitionReplica

log = logger("partition")

WITHOUT_SNAPSHOTS = TrimPolicy(mode=DurabilityMode.REPLICAS, delay_ms=TRIM_NAMED_MS)
"""What every replica has synced in its tables is needed by none of them; but another one may have
been named just now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmerPorts:
    """``archived``: what the snapshots of a partition have, None where nothing may lean on them.
    ``log_bytes``: what this node's log takes on its disk; ``is_disk_full``: it has no room."""

    plane: ControlPlane
    replicas: Mapping[int, PartitionReplica]
    clock: Clock
    policy: TrimPolicy
    archived: Callable[[int], int | None]
    log_bytes: Callable[[], int]
    is_disk_full: Callable[[], bool]


class Trimmer:
    """The partitions of one node; remembers what was trimmed while it leads."""

    def __init__(self, ports: TrimmerPorts) -> None:
        self._ports = ports
        self._plane = ports.plane
        self._cores: dict[tuple[int, int], TrimCore] = {}
        self._gone_since: dict[NodeId, int] = {}

    async def run(self, recycle: Callable[[], None]) -> None:
        """Look now and then, until cancelled."""
        while True:
            await asyncio.sleep(TRIM_LOOK_MS / 1000)
            self._look_who_is_gone()
            led = self._plane.leaderships.led()
            self._cores = {term: core for term, core in self._cores.items() if term in led}
            for partition, epoch in led:
                try:
                    await self._look(partition, epoch)
                except PerdureError as failure:
                    log.warning("partition.trim.failed", partition=partition, reason=failure)
            recycle()

    def statistics(self) -> tuple[TrimStatistics, ...]:
        """The partitions led here."""
        return tuple(
            TrimStatistics(
                partition,
                core.floor_lsn,
                core.trimmed_lsn,
                max(0, self._ports.replicas[partition].committed_lsn - core.trimmed_lsn),
                core.floor_age_ms,
            )
            for (partition, _), core in sorted(self._cores.items())
        )

    async def _look(self, partition: int, epoch: int) -> None:
        meta = self._plane.membership.partitions[partition]
        core = self._cores.get((partition, epoch))
        if core is None:
            core = self._cores[partition, epoch] = TrimCore(self._policy(), meta.trim_lsn - 1)
        replica = self._ports.replicas[partition]
        replicas = [self._durability(node, partition) for node in meta.replicas.named]
        durability = Durability(
            committed_lsn=replica.committed_lsn,
            archived_lsn=self._ports.archived(partition),
            replicas=replicas if len(meta.replicas.current) >= self._wanted() else [],
        )
        due = core.step(self._now(), durability)
        if due is None:
            return
        replica.trim(due + 1)
        log.debug("partition.log.trimmed", partition=partition, lsn=due)
        if chain.trim_prefix(meta, due + 1) != meta:
            await self._plane.membership.edit_partition(
                partition, lambda known: _trimmed(known, due + 1)
            )

    def _policy(self) -> TrimPolicy:
        """Without snapshots, as many must have a record in their tables as had it in their logs."""
        cluster = self._plane.membership.cluster
        assert cluster is not None  # read before anything is led
        return replace(self._ports.policy, copies_min=min(cluster.replication, self._wanted()))

    def _wanted(self) -> int:
        """How many replicas a partition is to have, with the nodes that there are."""
        membership = self._plane.membership
        assert membership.cluster is not None
        workers = sum(value.may_work for value in membership.nodes.values())
        return min(membership.cluster.partition_replicas, workers)

    def _durability(self, node: NodeId, partition: int) -> ReplicaDurability:
        gone_since = self._gone_since.get(node)
        dead_ms = self._now() - gone_since if gone_since is not None else None
        # What the log takes here is what waiting costs: for all partitions, but that is one disk.
        is_full = self._ports.is_disk_full()
        lag_bytes = DEAD_REPLICA_LAG_BYTES_MAX + 1 if is_full else self._ports.log_bytes()
        detector = self._plane.detector
        run = detector.writer(node)
        report = detector.replica_report(run, partition) if run is not None else None
        return ReplicaDurability(
            node=node,
            durable_lsn=report.durable_lsn if report is not None else 0,
            dead_ms=dead_ms,
            lag_bytes=lag_bytes,
        )

    def _look_who_is_gone(self) -> None:
        detector, now = self._plane.detector, self._now()
        gone = [n for n in self._plane.membership.nodes if detector.state(n).is_gone]
        self._gone_since = {node: self._gone_since.get(node, now) for node in gone}

    def _now(self) -> int:
        return round(self._ports.clock.monotonic() * 1000)


def _trimmed(known: PartitionMeta | None, below_lsn: int) -> PartitionMeta | None:
    if known is None:
        return None
    trimmed = chain.trim_prefix(known, below_lsn)
    return trimmed if trimmed != known else None
