"""Recovering a segment whose writer is gone: seal, find the tail, repair, only then close.

Feed it replies; it says what to send next. Several may run at once: each computes a tail that
covers every commit, and the chain's compare-and-set picks one. Rules and their proof: the cluster
log design 2.6.
"""

from dataclasses import dataclass

from perdure.cluster.core.quorum import recovered_tail
from perdure.cluster.core.types import Member, SealOk, SegmentParams
from perdure.core.invariant import invariant


@dataclass(frozen=True, slots=True)
class Repair:
    """Copy ``offset`` from a replica that holds it to ``target``."""

    offset: int
    source: Member
    target: Member


@dataclass(frozen=True, slots=True)
class Recovered:
    """Every offset below ``tail`` that isn't committed elsewhere has R durable copies."""

    tail: int


class RecoveryCore:
    """One recovery of one segment."""

    def __init__(self, params: SegmentParams) -> None:
        self._params = params
        self._replies: dict[Member, SealOk] = {}
        self._copies: dict[int, set[Member]] = {}
        self._sources: dict[int, tuple[Member, int]] = {}
        self._tail: int | None = None

    def on_sealed(self, reply: SealOk) -> list[Repair] | Recovered | None:
        """A replica is sealed, durably. None: more are needed."""
        if self._tail is not None or reply.member not in self._params.nodeset:
            return None
        self._replies[reply.member] = reply
        if len(self._replies) < self._params.seal_quorum:
            return None
        kgt = max(answer.kgt for answer in self._replies.values())
        for answer in self._replies.values():
            for offset, crc in answer.held:
                if offset < kgt:
                    continue
                known = self._sources.setdefault(offset, (answer.member, crc))
                invariant(
                    known[1] == crc, "one content per offset (I-2)", offset=offset, at=reply.member
                )
                self._copies.setdefault(offset, set()).add(answer.member)
        self._tail = recovered_tail(kgt, self._copies)
        self._copies = {o: members for o, members in self._copies.items() if o < self._tail}
        return self._next()

    def on_repaired(self, offset: int, target: Member) -> list[Repair] | Recovered:
        """A copy is durable at ``target``."""
        self._copies[offset].add(target)
        return self._next()

    def _next(self) -> list[Repair] | Recovered:
        assert self._tail is not None
        for offset in sorted(self._copies):
            missing = self._params.replication - len(self._copies[offset])
            if missing > 0:
                targets = [m for m in self._params.nodeset if m not in self._copies[offset]]
                source = self._sources[offset][0]
                return [Repair(offset, source, target) for target in targets[:missing]]
        return Recovered(self._tail)
