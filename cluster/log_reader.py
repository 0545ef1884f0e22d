"""Reading back what the write-ahead log holds: at a start, from each store's LSN to the tail."""

from collections.abc import Callable, Iterator

from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import SegmentKey
from perdure.core.errors import LogDamaged
from perdure.core.invariant import invariant
from perdure.storage.wal import Wal
from perdure.storage.wal_format import FrameHeader, FrameType, Record, decode_record
from perdure.storage.wal_recovery import FrameVisitor

IsDead = Callable[[SegmentKey, int], bool]


def liveness(chains: dict[int, PartitionMeta], durable_lsns: dict[int, int]) -> IsDead:
    """Tells whether all records of a segment below an offset are durable in the tables."""
    bases = {
        (partition, segment.index): segment.base_lsn
        for partition, meta in chains.items()
        for segment in meta.chain
    }

    def is_dead(segment: SegmentKey, end: int) -> bool:
        base_lsn = bases.get(segment)
        if base_lsn is None:
            # Dropped from the chain, or of a claim that never made it into one.
            return True
        return base_lsn + end - 1 <= durable_lsns[segment[0]]

    return is_dead


def restore_replicas(replicas: ReplicaCore) -> FrameVisitor:
    """For opening a log whose records are read later, by a follower: only replicas come back."""

    def visit(file_seq: int, position: int, header: FrameHeader, body: bytes) -> None:
        has_records = header.type in (FrameType.STORE, FrameType.REPAIR)
        replicas.restore(header, body, list(_record_crcs(body)) if has_records else [])

    return visit


def held_until_trimmed(replicas: ReplicaCore) -> IsDead:
    """As ``liveness``, where other nodes may need what is here: records go when they are trimmed,
    beyond a closed tail, or when their segment was dropped."""

    def is_dead(segment: SegmentKey, end: int) -> bool:
        state = replicas.state(segment)
        if state is None:
            return True
        closed = state.closed_tail
        return state.trim >= (end if closed is None else min(end, closed))

    return is_dead


class ReplayIndex:
    """Built while the log is opened: where the frames are that some store has not applied."""

    def __init__(self, replicas: ReplicaCore, is_dead: IsDead) -> None:
        self._replicas = replicas
        self._is_dead = is_dead
        self._frames: dict[SegmentKey, list[tuple[int, int]]] = {}

    def visit(self, file_seq: int, position: int, header: FrameHeader, body: bytes) -> None:
        """Take note of a frame; called for each, in log order."""
        crcs: list[int] = []
        if header.type in (FrameType.STORE, FrameType.REPAIR):
            crcs = list(_record_crcs(body))
            segment = (header.partition, header.segment)
            if not self._is_dead(segment, header.first_offset + header.record_count):
                self._frames.setdefault(segment, []).append((file_seq, position))
        self._replicas.restore(header, body, crcs)

    def records(
        self, wal: Wal, partition: int, meta: PartitionMeta, after: int
    ) -> Iterator[Record]:
        """Records of the closed segments with LSNs above ``after``, dense and ascending.

        Raises:
            LogDamaged: a record between ``after`` and the tail is not there (I-12).
        """
        expected = after + 1
        for segment in meta.chain:
            if segment.tail_lsn is None:
                _check_next(partition, expected, segment.base_lsn)
                break
            for file_seq, position in self._frames.get((partition, segment.index), []):
                _, body = wal.read_frame(file_seq, position)
                offset = 0
                while offset < len(body):
                    record, offset = decode_record(body, offset)
                    if record.lsn < expected or record.lsn >= segment.tail_lsn:
                        continue
                    _check_next(partition, expected, record.lsn)
                    invariant(
                        record.epoch == segment.epoch,
                        "records carry their segment's epoch (I-13)",
                        lsn=record.lsn,
                    )
                    expected += 1
                    yield record
            if expected < segment.tail_lsn:
                _check_next(partition, expected, segment.tail_lsn)


def _check_next(partition: int, expected: int, found: int) -> None:
    if expected != found:
        raise LogDamaged(
            f"partition {partition} needs record {expected} and the log goes on at {found}: "
            "restore the data directory from a backup, or wipe it"
        )


def _record_crcs(body: bytes) -> Iterator[int]:
    position = 0
    while position < len(body):
        position += 4 + int.from_bytes(body[position : position + 4], "little")
        yield int.from_bytes(body[position - 4 : position], "little")
