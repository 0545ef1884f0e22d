"""What the outside may rely on of a log, kept across the lives of a machine, and its checks.

Whatever was acknowledged or read once stays where it is, for ever: one content per LSN (I-2), dense
(I-12), epochs that don't fall (I-13), one writer per segment (I-1), a chain that only grows (I-11).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from perdure.cluster.core.chain import PartitionMeta
from perdure.storage.wal_format import Record


@dataclass(frozen=True)
class Seen:
    """A record somebody has seen."""

    epoch: int
    payload: bytes


class Violation(AssertionError):
    """The log broke a promise."""


@dataclass
class PartitionModel:
    """One partition. ``seen``: by LSN; ``acked``: the highest acknowledged LSN."""

    partition: int
    seen: dict[int, Seen] = field(default_factory=dict[int, Seen])
    places: dict[bytes, int] = field(default_factory=dict[bytes, int])
    acked: int = 0
    chain: PartitionMeta | None = None
    writers: dict[int, int] = field(default_factory=dict[int, int])

    def see(self, lsn: int, epoch: int, payload: bytes) -> None:
        """Somebody was shown this record at this LSN."""
        known = self.seen.setdefault(lsn, Seen(epoch, payload))
        self.require(known == Seen(epoch, payload), "one content per LSN", lsn)
        self.require(self.places.setdefault(payload, lsn) == lsn, "once only", lsn)
        for neighbour, is_before in ((lsn - 1, True), (lsn + 1, False)):
            if (other := self.seen.get(neighbour)) is not None:
                fits = other.epoch <= epoch if is_before else other.epoch >= epoch
                self.require(fits, "epochs don't fall along the log", lsn)

    def acknowledge(self, lsn: int, epoch: int, payload: bytes) -> None:
        """A proposer was told that its record is committed here."""
        self.see(lsn, epoch, payload)
        self.require(lsn == max(self.seen), "acknowledged in order", lsn)
        self.acked = max(self.acked, lsn)

    def reopen(self, durable: dict[int, Seen], replayed: Iterable[Record]) -> dict[int, Seen]:
        """A new life has read tables and log: nothing may be missing or changed."""
        found = dict(durable)
        for record in replayed:
            self.require(record.lsn == len(found) + 1, "replay is dense", record.lsn)
            found[record.lsn] = Seen(record.epoch, record.payload)
        self.require(list(found) == list(range(1, len(found) + 1)), "dense from 1", len(found))
        for lsn, shown in found.items():
            self.see(lsn, shown.epoch, shown.payload)
        self.require(max(self.seen, default=0) == len(found), "nothing seen is lost", len(found))
        return found

    def extend(self, meta: PartitionMeta) -> None:
        """The chain as a takeover left it."""
        known, self.chain = self.chain, meta
        opened = meta.chain[-1]
        self.require(opened.tail_lsn is None, "the last segment is open", opened.index)
        self.require(opened.index not in self.writers, "a segment is opened once", opened.index)
        self.writers[opened.index] = opened.writer.incarnation
        for before, after in zip(meta.chain, meta.chain[1:], strict=False):
            self.require(before.tail_lsn == after.base_lsn, "segments adjoin", after.index)
            self.require(before.epoch < after.epoch, "epochs grow", after.index)
            self.require(before.index + 1 == after.index, "indices grow", after.index)
        if known is None:
            return
        self.require(meta.epoch > known.epoch, "epochs are never handed out twice", meta.epoch)
        closed = {segment.index: segment for segment in known.chain if segment.tail_lsn is not None}
        for segment in meta.chain:
            if segment.index in closed:
                self.require(segment == closed[segment.index], "closed is closed", segment.index)

    def require(self, condition: bool, promise: str, at: object) -> None:
        if not condition:
            raise Violation(f"partition {self.partition}: {promise} (at {at})")
