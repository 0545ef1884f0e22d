"""Recovering a segment whose writer is gone: seal, find the tail, repair, only then close.

Feed it answers and failures; ``step`` says what is to be done next. Several may run at once: each
computes a tail that covers every commit, and the chain's compare-and-set picks one. It keeps
nothing on disk: a recoverer that dies is simply followed by another.

Invariants: only durably sealed members of the nodeset count, by node and disk · the tail is the
first offset at or above the highest kgt that none of them holds (I-8) · it is ``Recovered`` only
when every offset from kgt to the tail has R durable copies (I-9), unless ``degraded`` allows fewer.

With a ``Remnant`` it does without a quorum: an operator has said that the others are lost for good.
Then all that are left must answer, and commits that none of them has are cut off.
"""

from collections.abc import Collection
from dataclasses import dataclass

from perdure.cluster.core.quorum import recovered_tail
from perdure.cluster.core.types import Member, SealOk, SegmentParams
from perdure.core.invariant import invariant

_RANGE_RECORDS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Seal:
    """Too few replicas are sealed: ask ``members``, again where needed."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Repair:
    """Copy records ``[first_offset, first_offset + count)`` from ``source`` to ``target``."""

    first_offset: int
    count: int
    source: Member
    target: Member


@dataclass(frozen=True, slots=True)
class Copy:
    """Copies that are to be made, at once or one after the other."""

    repairs: tuple[Repair, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done until one of ``members`` answers again; ``reason`` is for people."""

    reason: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Remnant:
    """All replicas that are left of a segment. ``tail_min``: everything below is known to have been
    committed, whether they have it or not."""

    members: tuple[Member, ...]
    tail_min: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """Every offset below ``tail`` that isn't committed elsewhere has R durable copies.

    ``lacking_below``: of a remnant, offsets below may be on no replica; 0: none are missing above
    what it knew to be committed.
    """

    tail: int
    is_under_replicated: bool = False
    lacking_below: int = 0


Step = Seal | Copy | Wait | Recovered


class RecoveryCore:
    """One recovery of one segment."""

    def __init__(
        self,
        params: SegmentParams,
        *,
        is_degraded_allowed: bool = False,
        remnant: Remnant | None = None,
    ) -> None:
        self._params = params
        self._remnant = remnant
        self._members = params.nodeset if remnant is None else remnant.members
        self._needed = params.seal_quorum if remnant is None else len(remnant.members)
        self._is_degraded_allowed = is_degraded_allowed or remnant is not None
        self._replies: dict[Member, SealOk] = {}
        self._crcs: dict[int, int] = {}
        self._copies: dict[int, set[Member]] = {}
        self._absent: set[Member] = set()
        self._kgt = 0
        self._tail: int | None = None
        if not self._needed:
            self._find_tail()

    @property
    def missing(self) -> tuple[Member, ...]:
        """Members of the nodeset that have not answered, of those that are waited for."""
        return tuple(m for m in self._members if m not in self._replies)

    # --- What happened --------------------------------------------------------------------------

    def on_sealed(self, reply: SealOk) -> None:
        """A replica is sealed, durably."""
        member = reply.member
        if member not in self._members or self._tail is not None:
            return
        self._absent.discard(member)
        self._replies[member] = reply
        if len(self._replies) >= self._needed:
            self._find_tail()

    def on_repaired(self, repair: Repair) -> None:
        """The copies of a repair are durable."""
        for offset in range(repair.first_offset, repair.first_offset + repair.count):
            self._copies[offset].add(repair.target)
        self._absent.discard(repair.target)

    def on_absent(self, member: Member) -> None:
        """A member can't be asked now: neither source nor target until ``retry``."""
        self._absent.add(member)

    def retry(self) -> None:
        """Some time has passed: absent members may be tried again."""
        self._absent.clear()

    # --- What is next ---------------------------------------------------------------------------

    def step(self) -> Step:
        """What is to be done, given all that is known."""
        if self._tail is None:
            asked = tuple(m for m in self.missing if m not in self._absent)
            return Seal(asked) if asked else Wait("seal_quorum", self.missing)
        repairs: dict[tuple[Member, Member], list[int]] = {}
        is_short = False
        for offset in sorted(self._copies):
            copies = self._copies[offset]
            needed = self._params.replication - len(copies)
            if needed <= 0:
                continue
            sources = [m for m in self._members if m in copies - self._absent]
            targets = self._targets(copies)
            is_short = is_short or len(targets) < needed
            if not sources:
                return Wait("repair_source", tuple(m for m in self._members if m in copies))
            for target in targets[:needed]:
                repairs.setdefault((sources[0], target), []).append(offset)
        if repairs:
            return Copy(tuple(_ranges(repairs)))
        if is_short and not self._is_degraded_allowed:
            return Wait("repair_copies", tuple(m for m in self._members if m in self._absent))
        if self._remnant is not None:
            return Recovered(self._tail, True, self._lacking_below(self._tail))
        return Recovered(self._tail, is_short)

    def _lacking_below(self, tail: int) -> int:
        """Behind the last offset from kgt on that nobody holds; below kgt it can't be told here."""
        offsets = range(tail - 1, self._kgt - 1, -1)
        return next((offset + 1 for offset in offsets if offset not in self._copies), 0)

    def _targets(self, copies: Collection[Member]) -> list[Member]:
        """Members to copy to; those that are sealed already come first."""
        able = [m for m in self._members if m not in copies and m not in self._absent]
        return sorted(able, key=lambda member: member not in self._replies)

    def _find_tail(self) -> None:
        self._kgt = max((reply.kgt for reply in self._replies.values()), default=0)
        for reply in self._replies.values():
            for offset, crc in reply.held:
                if offset < self._kgt:
                    continue
                known = self._crcs.setdefault(offset, crc)
                invariant(
                    known == crc, "one content per offset (I-2)", offset=offset, at=reply.member
                )
                self._copies.setdefault(offset, set()).add(reply.member)
        known = self._remnant.tail_min if self._remnant is not None else 0
        self._tail = recovered_tail(max(self._kgt, known), self._copies)
        self._copies = {o: members for o, members in self._copies.items() if o < self._tail}

    def check(self, first_offset: int, crcs: Collection[int]) -> None:
        """Records about to be copied are those that were named when the tail was found."""
        for offset, crc in enumerate(crcs, first_offset):
            invariant(self._crcs[offset] == crc, "one content per offset (I-2)", offset=offset)


def _ranges(repairs: dict[tuple[Member, Member], list[int]]) -> list[Repair]:
    found: list[Repair] = []
    for (source, target), offsets in repairs.items():
        first, count = offsets[0], 0
        for offset in offsets:
            if offset != first + count or count == _RANGE_RECORDS_MAX:
                found.append(Repair(first, count, source, target))
                first, count = offset, 0
            count += 1
        found.append(Repair(first, count, source, target))
    return found
