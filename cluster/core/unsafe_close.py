"""Whether a segment may be closed without a quorum of its replicas, and what is known of it then.

For operators whose disks are gone: nobody can tell any more where the segment ends, so no rule
could close it. What is left decides: everything is kept that any replica holds without a gap, any
replica was told to be committed, or any table has applied. It is refused as long as the rules could
still do it, or a disk that is away might come back.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from perdure.cluster.core.chain import SegmentMeta, UnsafeClose
from perdure.cluster.core.membership import Nodes
from perdure.cluster.core.types import Member, NodeId, SegmentState


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that answers, and counts. LSNs are exclusive: what it was told to be committed, and
    up to where it has records."""

    member: Member
    committed_lsn: int
    tail_lsn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What is left of a segment. ``needed``: replicas with which the rules could close it.

    ``silent``: they don't answer, and may come back. ``known_lsn``, exclusive: what is below was
    committed. ``tail_lsn``, exclusive: the least that is kept. ``begins_lsn``: what is below may
    have holes, so it is had from tables alone. ``refusal``: why it isn't to be closed, or None.
    """

    segment: SegmentMeta
    needed: int
    counted: tuple[Replica, ...]
    silent: tuple[Member, ...]
    given_up: tuple[Member, ...]
    tables: tuple[tuple[NodeId, int], ...]
    known_lsn: int
    tail_lsn: int
    begins_lsn: int
    refusal: str | None = None

    def close(self, by: str, at_ms: int) -> UnsafeClose:
        """What an operator allows then."""
        return UnsafeClose(
            self.segment.index,
            self.segment.epoch,
            self.known_lsn,
            self.begins_lsn,
            tuple(replica.member for replica in self.counted),
            by,
            at_ms,
        )


def is_given_up(nodes: Nodes, member: Member) -> bool:
    """Whether a disk will never count again: its node was removed, has another one, or it was
    marked lost."""
    known = nodes.get(member.node)
    if known is None or known.is_removed:
        return True
    uuid = member.storage_uuid.hex()
    return known.storage_uuid != uuid or uuid in known.lost_uuids


def examine(
    segment: SegmentMeta,
    told: Mapping[Member, SegmentState | None],
    given_up: Collection[Member],
    tables: Mapping[NodeId, int],
    holes: Iterable[tuple[int, int]],
) -> Examination:
    """Of an open segment. ``told``: what its replicas say that answer and may vote (None: they have
    nothing of it). ``tables``: applied LSNs of nodes that live. ``holes``: half-open ranges of LSNs
    of the whole log that no replica has that is left, as far as they were committed."""
    base_lsn = segment.base_lsn
    counted = tuple(
        _replica(member, base_lsn, told[member])
        for member in segment.nodeset
        if member in told and member not in given_up
    )
    here = {replica.member for replica in counted}
    away = [member for member in segment.nodeset if member not in here]
    committed = max((replica.committed_lsn for replica in counted), default=base_lsn)
    held = max((replica.tail_lsn for replica in counted), default=base_lsn)
    applied = max(tables.values(), default=0)
    known_lsn = max(committed, applied + 1, base_lsn)
    # Each has all from what it knows to be committed up to its tail: so have all of them together.
    ends = [end for _, end in holes]
    if known_lsn > max(committed, held):
        ends.append(known_lsn)
    found = Examination(
        segment=segment,
        needed=len(segment.nodeset) - segment.replication + 1,
        counted=counted,
        silent=tuple(member for member in away if member not in given_up),
        given_up=tuple(member for member in away if member in given_up),
        tables=tuple(sorted(tables.items())),
        known_lsn=known_lsn,
        tail_lsn=max(known_lsn, held),
        begins_lsn=max(ends, default=0),
    )
    return _judged(found, applied)


def _replica(member: Member, base_lsn: int, state: SegmentState | None) -> Replica:
    if state is None:
        return Replica(member, base_lsn, base_lsn)
    return Replica(member, base_lsn + state.kgt, base_lsn + max(state.local_tail, state.kgt))


def _judged(found: Examination, applied_lsn: int) -> Examination:
    refusal: str | None = None
    count = len(found.counted)
    if count >= found.needed:
        refusal = (
            f"{count} of its replicas answer, {found.needed} are enough: whoever takes over closes "
            "it by the rules, and nothing is lost"
        )
    elif found.silent:
        nodes = ", ".join(str(member.node) for member in found.silent)
        refusal = (
            f"replicas on nodes {nodes} are away and may come back: start these nodes, or say "
            "that a disk will never come back with `perdure nodes mark-lost`"
        )
    elif applied_lsn + 1 < found.begins_lsn:
        refusal = (
            f"records below {found.begins_lsn} are on no replica that is left, and no tables have "
            f"more than record {applied_lsn}: nobody could go on from there; start a node that has "
            "more, or restore the cluster from its snapshots"
        )
    return replace(found, refusal=refusal)
