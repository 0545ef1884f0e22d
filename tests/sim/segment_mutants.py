"""The log's rules, each with a way to break it: what the world of segments must notice.

A mutant replaces one method of a machine, or asks the drivers of the world to break a rule that is
theirs. None of this is product code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from tests.sim.segment_actors import Rules

from perdure.cluster.core.recovery import Recovered, RecoveryCore, Seal, Step, Wait
from perdure.cluster.core.replica import ReplicaCore, Segment
from perdure.cluster.core.sequencer import Event, SequencerCore
from perdure.cluster.core.types import (
    Member,
    Refused,
    SealOk,
    SegmentKey,
    SegmentParams,
    SegmentRef,
    SegmentState,
    Store,
    StoreAck,
)
from perdure.storage.wal_format import Frame, FrameHeader, FrameType

Patch = Callable[[str, object], None]

STORE = ReplicaCore.store
SEAL_REPLY = ReplicaCore.seal_reply
REPAIR = ReplicaCore.repair
RESTORE = ReplicaCore.restore
STEP = RecoveryCore.step
HELLO = SequencerCore.on_hello
FIND_TAIL = RecoveryCore._find_tail  # pyright: ignore[reportPrivateUsage]


def _seal_short(params: SegmentParams) -> int:
    return max(1, len(params.nodeset) - params.replication)


def _forget_seals(core: ReplicaCore, header: FrameHeader, body: bytes, crcs: list[int]) -> None:
    if header.type != FrameType.SEAL:
        RESTORE(core, header, body, crcs)


def _free_holes(core: ReplicaCore, item: Store) -> Frame | Refused | StoreAck:
    segment = core.segment((item.partition, item.segment))
    if segment is None:
        STORE(core, msgspec.structs.replace(item, first_offset=0, kgt=0, records=()))
        segment = core.segment((item.partition, item.segment))
    if segment is not None and segment.tail_at_seal is None:
        segment.local_tail = max(segment.local_tail, item.first_offset)
    return STORE(core, item)


def _count_repairs(core: ReplicaCore, item: Store) -> Frame | Refused | StoreAck:
    """A sealed replica tells the sequencer of what recoverers have put there."""
    answer = STORE(core, item)
    segment = core.segment((item.partition, item.segment))
    if not isinstance(answer, Refused) or segment is None or segment.tail_at_seal is None:
        return answer
    tail = max(segment.tail_at_seal, segment.kgt)
    while tail in segment.crcs:
        tail += 1
    return StoreAck(item.partition, item.segment, tail)


def _repair_moves_kgt(
    core: ReplicaCore, ref: SegmentRef, by_epoch: int, first: int, records: tuple[bytes, ...]
) -> list[Frame] | Refused:
    frames = REPAIR(core, ref, by_epoch, first, records)
    segment = core.segment(ref.key)
    if segment is not None and not isinstance(frames, Refused):
        segment.raise_kgt(first + len(records))
    return frames


def _digest_unsealed(core: ReplicaCore, ref: SegmentRef, by_epoch: int) -> Frame | Refused:
    segments: dict[SegmentKey, Segment] = core._segments  # pyright: ignore[reportPrivateUsage]
    segment = segments.setdefault(ref.key, Segment(ref.epoch, ref.incarnation))
    return Frame(FrameType.KGT, *ref.key, ref.epoch, ref.incarnation, 0, 0, segment.kgt, ())


def _unsealed_reply(core: ReplicaCore, key: SegmentKey, from_offset: int = 0) -> SealOk:
    segment = core.segment(key)
    assert segment is not None
    before = segment.tail_at_seal
    segment.tail_at_seal = segment.local_tail
    reply = SEAL_REPLY(core, key, from_offset)
    segment.tail_at_seal = before
    return reply


def _name_unsynced(core: ReplicaCore, key: SegmentKey, from_offset: int = 0) -> SealOk:
    segment = core.segment(key)
    assert segment is not None
    segment.unsynced.clear()
    return SEAL_REPLY(core, key, from_offset)


def _local_tail(core: ReplicaCore, key: SegmentKey) -> int:
    segment = core.segment(key)
    return segment.local_tail if segment is not None else 0


def _kgt_is_the_tail(kgt: int, held: object) -> int:
    return kgt


def _highest_local_tail(core: RecoveryCore) -> None:
    FIND_TAIL(core)
    replies: dict[Member, SealOk] = core._replies  # pyright: ignore[reportPrivateUsage]
    tail = max(reply.tail_at_seal for reply in replies.values())
    if tail > (core._tail or 0):  # pyright: ignore[reportPrivateUsage]
        core._tail = tail  # pyright: ignore[reportPrivateUsage]
        for offset in range(core._kgt, tail):  # pyright: ignore[reportPrivateUsage]
            core._copies.setdefault(offset, set())  # pyright: ignore[reportPrivateUsage]


def _skip_repair(core: RecoveryCore) -> Step:
    step = STEP(core)
    if isinstance(step, Seal) or (isinstance(step, Wait) and step.reason == "seal_quorum"):
        return step
    return Recovered(core._tail or 0)  # pyright: ignore[reportPrivateUsage]


def _trust_any_disk(
    core: SequencerCore,
    member: Member,
    is_authoritative: bool,
    state: SegmentState | None,
    greeted: int,
    now: float,
) -> Event | None:
    known = next((m for m in core.params.nodeset if m.node == member.node), member)
    return HELLO(core, known, is_authoritative, state, greeted, now)


def _staged_counts(
    core: SequencerCore,
    member: Member,
    is_authoritative: bool,
    state: SegmentState | None,
    greeted: int,
    now: float,
) -> Event | None:
    if state is not None:
        state = msgspec.structs.replace(state, durable_tail=state.local_tail)
    return HELLO(core, member, is_authoritative, state, greeted, now)


_REPLICA = "perdure.cluster.core.replica.ReplicaCore"
_RECOVERY = "perdure.cluster.core.recovery.RecoveryCore"
_SEQUENCER = "perdure.cluster.core.sequencer.SequencerCore"


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """``patches``: what replaces what. ``wipes``: it shows only when disks are lost.

    One of ``seeds`` seeds from ``first_seed`` on has to notice.
    """

    name: str
    patches: tuple[tuple[str, object], ...] = ()
    rules: Rules = field(default_factory=Rules)
    wipes: bool = False
    first_seed: int = 0
    seeds: int = 100


MUTANTS = (
    Mutant(
        name="seal by n - R",
        patches=(("perdure.cluster.core.types.SegmentParams.seal_quorum", property(_seal_short)),),
    ),
    Mutant(name="reply before the sync", rules=Rules(replies_follow_sync=False)),
    Mutant(
        name="seals are not durable", patches=((f"{_REPLICA}.restore", _forget_seals),), seeds=200
    ),
    Mutant(name="holes without proof", patches=((f"{_REPLICA}.store", _free_holes),)),
    Mutant(
        name="kgt is the tail",
        patches=(("perdure.cluster.core.recovery.recovered_tail", _kgt_is_the_tail),),
    ),
    Mutant(
        name="the highest local tail is the tail",
        patches=((f"{_RECOVERY}._find_tail", _highest_local_tail),),
        first_seed=1010,  # it takes a late recoverer after a close: one run in some thousands
        seeds=40,
    ),
    Mutant(name="a segment is resumed", rules=Rules(segments_are_never_resumed=False)),
    Mutant(name="register before repair", patches=((f"{_RECOVERY}.step", _skip_repair),)),
    Mutant(
        name="readers see the local tail", patches=((f"{_REPLICA}.readable_tail", _local_tail),)
    ),
    Mutant(name="repair moves kgt", patches=((f"{_REPLICA}.repair", _repair_moves_kgt),)),
    Mutant(name="repairs count as stores", patches=((f"{_REPLICA}.store", _count_repairs),)),
    Mutant(
        name="digests of the unsealed",
        patches=(
            (f"{_REPLICA}.seal", _digest_unsealed),
            (f"{_REPLICA}.seal_reply", _unsealed_reply),
        ),
    ),
    Mutant(name="close before the register", rules=Rules(close_follows_cas=False)),
    Mutant(name="wiped disks vote", rules=Rules(disks_have_names=False), wipes=True),
    Mutant(
        name="replies name staged repairs", patches=((f"{_REPLICA}.seal_reply", _name_unsynced),)
    ),
    Mutant(
        name="any disk may answer hello",
        patches=((f"{_SEQUENCER}.on_hello", _trust_any_disk),),
        wipes=True,
        seeds=200,
    ),
    Mutant(
        name="hello counts what is staged", patches=((f"{_SEQUENCER}.on_hello", _staged_counts),)
    ),
)
