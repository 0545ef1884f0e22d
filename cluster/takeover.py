"""Taking over a partition: claim, seal, find the tail, close and extend the chain, then lead.

The only way a segment is opened. Each start of a process goes through it: a sequencer never
resumes a segment (cluster log design 2.6.2).
"""

import asyncio
from dataclasses import dataclass

import msgspec

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta, SegmentMeta
from perdure.cluster.core.recovery import Recovered, RecoveryCore
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import Member, SegmentParams, Writer
from perdure.cluster.log_server import LogServer
from perdure.cluster.metadata.store import MetadataStore, Versioned
from perdure.core.errors import MetadataConflict, MetadataRegressed, StoreAheadOfLog
from perdure.core.invariant import invariant
from perdure.core.telemetry import logger

log = logger("log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """The chain as it is now; ``opened`` is the segment this process may write."""

    meta: PartitionMeta
    opened: SegmentParams


def partition_key(partition: int) -> str:
    """Metadata key of a partition's register."""
    return f"p/{partition}"


def decode_meta(found: Versioned | None) -> PartitionMeta:
    """The register's value, or the empty one."""
    if found is None:
        return chain.empty()
    return msgspec.msgpack.decode(found.value, type=PartitionMeta)


async def take_over(
    partition: int,
    metadata: MetadataStore,
    server: LogServer,
    replicas: ReplicaCore,
    me: tuple[Writer, Member],
    durable_lsn: int,
) -> Takeover:
    """Run the steps for one partition whose only replica is in this process.

    Closed segments that end at or below ``durable_lsn`` leave the chain.

    Raises:
        MetadataConflict: somebody else claimed the partition meanwhile.
        MetadataRegressed: the replica has seen the epoch that metadata hands out now (I-19).
        StoreAheadOfLog: ``durable_lsn`` is not in the log; the chain stays as it is (I-18).
    """
    writer, member = me
    found = await metadata.get(partition_key(partition))
    claimed = chain.claim(chain.trim_prefix(decode_meta(found), durable_lsn + 1), writer, "start")
    version = await _cas(metadata, partition, found.version if found else None, claimed)
    mine = claimed.claim
    assert mine is not None
    if mine.epoch <= replicas.epoch_seen(partition):
        raise MetadataRegressed(
            f"metadata hands out epoch {mine.epoch} of partition {partition}, the log has seen "
            f"{replicas.epoch_seen(partition)}: restore the folder metadata/"
        )
    tail = 0
    last = chain.open_segment(claimed)
    if last is not None:
        tail = await _seal_and_recover(partition, last, server, replicas, mine.epoch)
    extended = chain.extend(claimed, mine, tail, (member,), 1)
    invariant(extended is not None, "the claim just written is mine", partition=partition)
    assert extended is not None
    if durable_lsn >= extended.chain[-1].base_lsn:
        raise StoreAheadOfLog(
            f"partition {partition} has applied record {durable_lsn}, its log ends before "
            f"{extended.chain[-1].base_lsn}: a log file was lost or rolled back; restore the data "
            "directory from a backup, or wipe it"
        )
    version = await _cas(metadata, partition, version, extended)
    if last is not None:
        server.close_segment((partition, last.index), tail, version)
    server.drop_segments(partition, extended.chain[0].index, version)
    opened = extended.chain[-1].params(partition)
    log.debug(
        "log.segment.opened",
        partition=partition,
        segment=opened.index,
        base_lsn=opened.base_lsn,
        epoch=opened.epoch,
    )
    return Takeover(meta=extended, opened=opened)


async def _seal_and_recover(
    partition: int, last: SegmentMeta, server: LogServer, replicas: ReplicaCore, epoch: int
) -> int:
    params = last.params(partition)
    sealed = asyncio.Event()
    server.seal(params, epoch, sealed.set)
    await sealed.wait()
    core = RecoveryCore(params)
    core.on_sealed(replicas.seal_reply(params.key))
    outcome = core.step()
    invariant(isinstance(outcome, Recovered), "one replica is its own quorum", partition=partition)
    assert isinstance(outcome, Recovered)
    return outcome.tail


async def _cas(
    metadata: MetadataStore, partition: int, expected: int | None, value: PartitionMeta
) -> int:
    key = partition_key(partition)
    outcome = await metadata.cas(key, expected, msgspec.msgpack.encode(value))
    if not isinstance(outcome, Versioned):
        raise MetadataConflict(f"metadata key {key} changed while this node claimed it: {outcome}")
    return outcome.version
