"""Reading a partition's log across its segments, from any replicas that have it.

``step`` says what to do next; the driver does it and tells. Only what is committed is asked for:
below a tail that some replica of the segment's nodeset was told by its writer, or below the tail
that the chain fixed (I-10). Where one replica has a hole, another is asked. A record that no
replica of the nodeset has is data loss, reported and never skipped (I-12). A reader never seals.
"""

from dataclasses import dataclass

from perdure.cluster.core.chain import PartitionMeta, SegmentMeta, forsaken, segment_at
from perdure.cluster.core.log_messages import Records, TailState
from perdure.cluster.core.types import Member, SegmentKey
from perdure.core.invariant import invariant
from perdure.storage.wal_format import Record, decode_record


@dataclass(frozen=True, slots=True)
class ReadChain:
    """The chain is not known, or too old: a segment was sealed and its successor isn't in it."""


@dataclass(frozen=True, slots=True)
class WaitTail:
    """Everything committed so far was read; wait for the tail of the open segment to move."""

    segment: SegmentMeta


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read ``[lower, upper)`` of a segment from ``source``."""

    segment: SegmentMeta
    source: Member
    lower: int
    upper: int


@dataclass(frozen=True, slots=True)
class WaitSource:
    """Replicas that may have the next record can't be reached."""

    lsn: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class TrimGap:
    """Records below ``lsn`` are gone for good: a snapshot that covers them is needed."""

    lsn: int


@dataclass(frozen=True, slots=True)
class Missing:
    """No replica has the record, although it was committed and never trimmed (I-12)."""

    lsn: int


@dataclass(frozen=True, slots=True)
class Forsaken:
    """What was read or applied last was cut off by an unsafe close: there is no way on from it."""

    lsn: int
    epoch: int


Step = ReadChain | WaitTail | Fetch | WaitSource | TrimGap | Missing | Forsaken


class ReaderCore:
    """Reads one partition from ``next_lsn`` on. ``home`` is the replica that is asked first;
    ``epoch`` that of the record before."""

    def __init__(
        self, partition: int, next_lsn: int, home: Member | None, epoch: int | None = None
    ) -> None:
        self.next_lsn = next_lsn
        self._epoch = epoch
        self._partition = partition
        self._home = home
        self._meta: PartitionMeta | None = None
        self.version = 0
        self._is_stale = True
        self._tails: dict[int, TailState] = {}
        self._lacking: dict[Member, int] = {}  # has nothing below this LSN
        self._absent: set[Member] = set()
        self._gap: int | None = None

    # --- What happened --------------------------------------------------------------------------

    def on_chain(self, meta: PartitionMeta, version: int) -> None:
        """The register was read; older readings than one before are ignored."""
        if version < self.version:
            return
        self._meta, self.version, self._is_stale = meta, version, False
        self._tails = {s.index: self._tails[s.index] for s in meta.chain if s.index in self._tails}
        self._gap = None

    def on_tail(self, key: SegmentKey, state: TailState) -> None:
        """A replica told how far a segment may be read. What is known never falls."""
        known = self._tails.get(key[1])
        kgt = max(state.kgt, known.kgt if known is not None else 0)
        is_sealed = state.is_sealed or (known is not None and known.is_sealed)
        if is_sealed and (known is None or not known.is_sealed):
            self._is_stale = True
        self._tails[key[1]] = TailState(kgt, is_sealed, state.closed_tail)

    def on_records(self, fetch: Fetch, piece: Records | None) -> list[Record]:
        """What a source answered; the records to be delivered now, dense and in order."""
        base = fetch.segment.base_lsn
        if piece is None:
            self._absent.add(fetch.source)
            return []
        if not piece.records:
            if piece.is_trimmed:
                self._gap = base + piece.first_offset
            else:
                self._lacking[fetch.source] = base + piece.first_offset
            return []
        found: list[Record] = []
        for number, encoded in enumerate(piece.records):
            record, _ = decode_record(encoded, 0)
            lsn = base + piece.first_offset + number
            invariant(record.lsn == lsn, "records carry their place", lsn=lsn, found=record.lsn)
            invariant(
                record.epoch == fetch.segment.epoch,
                "records carry their segment's epoch (I-13)",
                lsn=lsn,
            )
            if lsn == self.next_lsn and piece.first_offset + number < fetch.upper:
                found.append(record)
                self.next_lsn += 1
                self._epoch = record.epoch
        if found and self._home is not None:
            self._absent.discard(self._home)  # it costs nothing to ask
        return found

    def on_absent(self, source: Member) -> None:
        """A source can't be asked now, or doesn't know yet that the records are committed."""
        self._absent.add(source)

    def retry(self) -> None:
        """Some time has passed: absent sources may be tried, and the chain read, again."""
        self._absent.clear()

    def expire(self) -> None:
        """Read the chain again, whatever it says."""
        self._is_stale = True

    def on_no_news(self, segment: SegmentMeta) -> None:
        """Some time has passed and its tail doesn't move.

        One that is sealed, or that nobody knows of, never will: its successor may be in the chain.
        """
        state = self._tails.get(segment.index)
        if state is None or state.is_sealed:
            self._is_stale = True

    # --- What is next ---------------------------------------------------------------------------

    def step(self) -> Step:
        """What is to be done, given all that is known."""
        meta = self._meta
        if meta is None or self._is_stale:
            return ReadChain()
        lsn = self.next_lsn
        if meta.unsafe and self._epoch is not None and forsaken(meta, lsn - 1, self._epoch):
            return Forsaken(lsn - 1, self._epoch)
        # A chain may begin in the midst of a segment: where a single node had let go of the rest.
        first = max(meta.chain[0].base_lsn if meta.chain else 0, meta.trim_lsn)
        if lsn < first:
            return TrimGap(first)
        if self._gap is not None and lsn < self._gap:
            return TrimGap(self._gap)
        segment = segment_at(meta, lsn)
        if segment is None:
            return ReadChain()
        upper = self._bound(segment)
        lower = lsn - segment.base_lsn
        if lower >= upper:
            return WaitTail(segment)
        return self._fetch(segment, lower, upper)

    def _bound(self, segment: SegmentMeta) -> int:
        if segment.tail_lsn is not None:
            return segment.tail_lsn - segment.base_lsn
        state = self._tails.get(segment.index)
        return state.kgt if state is not None else 0

    def _fetch(self, segment: SegmentMeta, lower: int, upper: int) -> Step:
        lsn = self.next_lsn
        holding = [m for m in self._ordered(segment) if self._lacking.get(m, 0) <= lsn]
        if not holding:
            return Missing(lsn)
        able = [member for member in holding if member not in self._absent]
        if not able:
            return WaitSource(lsn, tuple(holding))
        # As far as replicas that come before this one have nothing; from there on they are better.
        better = self._ordered(segment)[: self._ordered(segment).index(able[0])]
        ends = [self._lacking[m] - segment.base_lsn for m in better if m not in self._absent]
        return Fetch(segment, able[0], lower, min([upper, *ends]))

    def _ordered(self, segment: SegmentMeta) -> list[Member]:
        def rank(member: Member) -> tuple[bool, bool, int]:
            return member != self._home, member.node != segment.writer.node, member.node

        return sorted(segment.nodeset, key=rank)
