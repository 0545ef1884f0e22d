"""One node's replicas behind its write-ahead log: takes stores, says when they are durable.

Called in process by the sequencers of the same node; the fabric will call the same methods for
other nodes' sequencers.
"""

from collections.abc import Callable
from functools import partial

from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import Refused, SegmentKey, SegmentParams, Store, StoreAck
from perdure.cluster.wal_writer import WalWriter
from perdure.core.invariant import invariant
from perdure.storage.wal_format import Frame

AckReceiver = Callable[[StoreAck | Refused], None]


class LogServer:
    """The replicas of one node."""

    def __init__(self, core: ReplicaCore, writer: WalWriter) -> None:
        self._core = core
        self._writer = writer

    @property
    def is_full(self) -> bool:
        """Whether the disk has no room for another log file."""
        return self._writer.is_full

    def store(self, item: Store, reply: AckReceiver) -> None:
        """Take a sequencer's records; ``reply`` when they are durable, or at once if refused."""
        answer = self._core.store(item)
        if not isinstance(answer, Frame):
            reply(answer)
            return
        tail = answer.first_offset + answer.record_count
        self._writer.stage(
            answer, partial(self._stored, (item.partition, item.segment), tail, reply)
        )

    def seal(self, params: SegmentParams, by_epoch: int, sealed: Callable[[], None]) -> None:
        """Refuse stores to the segment for ever; ``sealed`` once that is durable."""
        frame = self._core.seal(params.ref, by_epoch)
        invariant(isinstance(frame, Frame), "an own segment is sealed", refused=frame)
        assert isinstance(frame, Frame)
        self._writer.stage(frame, sealed)

    def close_segment(self, key: SegmentKey, tail: int, version: int) -> None:
        """The chain fixed the segment's tail; made durable with the next group."""
        if (frame := self._core.close(key, tail, version)) is not None:
            self._writer.stage(frame, None)

    def trim(self, key: SegmentKey, up_to: int) -> None:
        """Committed records below ``up_to`` are durable in tables: their place may go."""
        if (state := self._core.state(key)) is not None:
            self._core.release(state.ref, up_to)
        if (frame := self._core.trim(key, up_to)) is not None:
            self._writer.stage(frame, None)

    def drop_segments(self, partition: int, below_index: int, version: int) -> None:
        """Forget segments that the chain no longer lists."""
        self._core.drop(partition, below_index, version)

    def _stored(self, key: SegmentKey, tail: int, reply: AckReceiver) -> None:
        reply(self._core.on_durable(key, tail))
