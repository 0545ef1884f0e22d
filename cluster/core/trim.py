"""How far a partition's log may be trimmed: never beyond what can be had without it. Pure.

A floor is computed from what snapshots hold and what replicas have in their tables, by the mode of
durability; a floor is acted upon only after it has stood for the trim delay, so that a replica that
was just away still finds the records it needs.

I-24: trim point <= floor <= committed · the trim point never falls.

| mode | floor: everything up to here may go |
| --- | --- |
| none | nothing |
| replicas | what every replica has in its tables |
| snapshot | the archived LSN: what the oldest retained snapshot has |
| balanced | as both, but dead replicas hold it up only so far |
| both | the lower of the archived LSN and what every replica has |

Where a policy says how many replicas must have a record, ``replicas`` does as ``balanced``: dead
ones, which would take tables from others then, hold the floor up only so far.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from perdure.core.invariant import invariant
from perdure.core.limits_snapshots import (
    DEAD_REPLICA_LAG_BYTES_MAX,
    DEAD_REPLICA_LAG_MS_MAX,
    TRIM_DELAY_MS,
)


class DurabilityMode(Enum):
    """What must hold a record before the log may let go of it. Values: as operators know them."""

    NONE = "none"
    REPLICAS = "replica-set-only"
    SNAPSHOT = "snapshot-only"
    BALANCED = "balanced"
    BOTH = "snapshot-and-replica-set"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDurability:
    """A current replica of the partition, as far as is known here.

    ``durable_lsn``: in its tables, synced; 0 when it never said. ``dead_ms``: how long it has been
    dead, None while it lives. ``lag_bytes``: log that it would have to read.
    """

    node: int
    durable_lsn: int
    dead_ms: int | None = None
    lag_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """What is known at one moment.

    ``archived_lsn``: None while there is no snapshot, or while the object store doesn't keep its
    promises: automatic trimming must not lean on it then. ``committed_lsn``: inclusive.
    """

    committed_lsn: int
    archived_lsn: int | None
    replicas: Sequence[ReplicaDurability]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimPolicy:
    """How the log is trimmed. A dead replica is waited for until it lags by either limit.

    ``copies_min``: with ``REPLICAS``, how many replicas must have a record in their tables before
    dead ones that lag too far are not waited for any more; None: they always are.
    """

    mode: DurabilityMode
    copies_min: int | None = None
    delay_ms: int = TRIM_DELAY_MS
    dead_ms_max: int = DEAD_REPLICA_LAG_MS_MAX
    dead_lag_bytes_max: int = DEAD_REPLICA_LAG_BYTES_MAX


@dataclass(frozen=True, slots=True)
class TrimStatistics:
    """A partition led here. ``held_records``: committed and not trimmed; ``floor_age_ms``: how long
    nothing more could go."""

    partition: int
    floor_lsn: int
    trimmed_lsn: int
    held_records: int
    floor_age_ms: int


def trim_floor(policy: TrimPolicy, durability: Durability) -> int:
    """The last LSN that may be let go of now; 0: none."""
    return min(*_bounds(policy, durability), durability.committed_lsn)


def _bounds(policy: TrimPolicy, durability: Durability) -> list[int]:
    archived = durability.archived_lsn or 0
    everyone = min((replica.durable_lsn for replica in durability.replicas), default=0)
    match policy.mode:
        case DurabilityMode.NONE:
            return [0]
        case DurabilityMode.REPLICAS:
            if policy.copies_min is None:
                return [everyone]
            return [_held_by(policy.copies_min, durability), *_awaited(policy, durability)]
        case DurabilityMode.SNAPSHOT:
            return [archived]
        case DurabilityMode.BOTH:
            return [archived, everyone]
        case DurabilityMode.BALANCED:
            return [archived, *_awaited(policy, durability)]
        case _ as unreachable:
            assert_never(unreachable)


def _held_by(copies: int, durability: Durability) -> int:
    """The last LSN that so many replicas have in their tables."""
    held = sorted((replica.durable_lsn for replica in durability.replicas), reverse=True)
    return held[copies - 1] if len(held) >= copies else 0


def _awaited(policy: TrimPolicy, durability: Durability) -> list[int]:
    replicas = (item for item in durability.replicas if _is_waited_for(policy, item))
    return [replica.durable_lsn for replica in replicas]


def _is_waited_for(policy: TrimPolicy, replica: ReplicaDurability) -> bool:
    if replica.dead_ms is None:
        return True
    is_recent = replica.dead_ms <= policy.dead_ms_max
    return is_recent and replica.lag_bytes <= policy.dead_lag_bytes_max


class TrimCore:
    """Watches the floor of one partition; says when, and up to where, to trim."""

    def __init__(self, policy: TrimPolicy, trimmed_lsn: int) -> None:
        self.policy = policy
        self.trimmed_lsn = trimmed_lsn
        self.floor_lsn = 0
        self._since_ms: int | None = None
        # Floors in the order in which they were first seen; both columns grow.
        self._seen: deque[tuple[int, int]] = deque()

    def step(self, now_ms: int, durability: Durability) -> int | None:
        """What is known now, by a clock that only grows; a new trim point (inclusive), or None."""
        invariant(
            self._since_ms is None or now_ms >= self._since_ms,
            "the clock of trimming only grows",
            now_ms=now_ms,
            before_ms=self._since_ms,
        )
        self._since_ms = now_ms
        floor = trim_floor(self.policy, durability)
        self.floor_lsn = floor
        # A floor that fell (a new replica, a lost archive) takes back what was not acted upon; the
        # lower one has stood for as long as the one above it.
        seen_ms = now_ms
        while self._seen and self._seen[-1][1] > floor:
            seen_ms = self._seen.pop()[0]
        if not self._seen or self._seen[-1][1] < floor:
            self._seen.append((seen_ms, floor))
        due = 0
        while self._seen and now_ms - self._seen[0][0] >= self.policy.delay_ms:
            due = self._seen[0][1]
            if len(self._seen) == 1:
                break  # it stands: were it dropped, it would seem new at the next look
            self._seen.popleft()
        if due <= self.trimmed_lsn:
            return None
        invariant(
            due <= floor <= durability.committed_lsn,
            "nothing is trimmed above the floor",
            due=due,
            floor=floor,
            committed=durability.committed_lsn,
        )
        self.trimmed_lsn = due
        return due

    @property
    def floor_age_ms(self) -> int:
        """How long the floor has not moved."""
        if not self._seen or self._since_ms is None:
            return 0
        return self._since_ms - self._seen[-1][0]
