"""Timers and the outbox: what a leader has to do later, or elsewhere.

Tables ``timers`` and ``expiries`` (time, kind, id, number -> ``accepted_lsn`` of the invocation),
``outbox`` (target partition, sequence -> Outgoing), ``sequences`` (counters of both ends of the
outboxes). Expiries have a table of their own so that somebody's sleep never waits behind them.
"""

from enum import IntEnum

import msgspec


class TimerKind(IntEnum):
    """What happens when a timer fires; ``number`` is a sleep's completion id, else 0."""

    SLEEP = 0
    START = 1
    EXPIRE_COMPLETION = 2
    EXPIRE_JOURNAL = 3

    @property
    def is_expiry(self) -> bool:
        """Whether it ends a retention: in ``expiries``, not in ``timers``."""
        return self >= TimerKind.EXPIRE_COMPLETION


class Outgoing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An encoded command for another partition, and the partition key it goes to."""

    partition_key: int
    payload: bytes


def outbox_counter(target_partition: int) -> bytes:
    """Key of the last sequence sent to a partition."""
    return b"out" + target_partition.to_bytes(4)


def inbound_counter(source_partition: int) -> bytes:
    """Key of the last sequence applied from a partition."""
    return b"in" + source_partition.to_bytes(4)
