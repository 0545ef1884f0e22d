"""Carries a partition's outbox to other partitions, in order, and trims what has arrived.

The receiving end drops repeats by sequence, so everything not yet known to be applied is simply
sent again: after a restart, when it was refused, and when nothing was heard of it for a while
because a session, or the leader at the other end, was lost on the way.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from perdure.core.errors import PerdureError
from perdure.core.invariant import invariant
from perdure.core.limits import OUTBOX_STALL_MS, OUTBOX_TRIM_INTERVAL_MS, OUTBOX_WINDOW_COUNT
from perdure.storage.keys import outbox_key, split_outbox_key
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.timers import Outgoing

_REFUSED_RETRY_SECONDS = 0.05
_SCAN_COUNT = 1024

Deliver = Callable[[int, int, Outgoing], None]
"""Hand (target partition, sequence, message) to the target's leader; may raise PerdureError."""


@dataclass(slots=True)
class _Lane:
    """``acked <= sent <= stored``: sequences towards one partition. ``stalled_at``: what had been
    acknowledged when the lane was last looked at while something was in flight."""

    acked: int
    sent: int
    stored: int
    retry: asyncio.TimerHandle | None = field(default=None)
    stalled_at: int = -1


class Shuffle:
    """The outgoing messages of one partition."""

    def __init__(
        self, store: PartitionStore, deliver: Deliver, trim: Callable[[int, int], None]
    ) -> None:
        self._store = store
        self._deliver = deliver
        self._trim = trim
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[int, _Lane] = {}
        self._untrimmed: dict[int, int] = {}
        self._trimmer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self.sent_count = 0

    def start(self) -> None:
        """Send everything that is in the outbox."""
        lower = b""
        while found := self._store.outbox.scan(lower, _SCAN_COUNT):
            for key, _ in found:
                partition, sequence = split_outbox_key(key)
                lane = self._lanes.get(partition)
                if lane is None:
                    lane = self._lanes[partition] = _Lane(sequence - 1, sequence - 1, sequence)
                lane.stored = max(lane.stored, sequence)
            lower = self._store.outbox.after(found[-1][0])
        for partition in list(self._lanes):
            self._pump(partition)

    def stored(self, partition: int, sequence: int) -> None:
        """A message was put into the outbox."""
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane(sequence - 1, sequence - 1, sequence)
        lane.stored = max(lane.stored, sequence)
        self._pump(partition)

    def applied(self, partition: int, sequence: int) -> None:
        """``partition`` has applied our messages up to ``sequence``."""
        lane = self._lanes.get(partition)
        if lane is None or sequence <= lane.acked or self._is_stopped:
            return
        lane.acked = sequence
        lane.sent = max(lane.sent, sequence)  # what is sent again may be acknowledged meanwhile
        self._untrimmed[partition] = sequence
        if self._trimmer is None:
            self._trimmer = self._loop.call_later(
                OUTBOX_TRIM_INTERVAL_MS / 1000, self._trim_applied
            )
        self._pump(partition)

    def resend_later(self, partition: int) -> None:
        """What is not acknowledged did not arrive: send it again, in a moment."""
        lane = self._lanes.get(partition)
        if lane is None or lane.retry is not None or self._is_stopped:
            return
        lane.sent = lane.acked
        lane.retry = self._loop.call_later(_REFUSED_RETRY_SECONDS, self._pump_again, partition)

    def in_flight(self) -> int:
        """Messages handed over and not known to be applied."""
        return sum(lane.sent - lane.acked for lane in self._lanes.values())

    def stop(self) -> None:
        self._is_stopped = True
        if self._trimmer is not None:
            self._trimmer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        for lane in self._lanes.values():
            if lane.retry is not None:
                lane.retry.cancel()

    def _pump(self, partition: int) -> None:
        lane = self._lanes[partition]
        if lane.retry is not None or self._is_stopped:
            return
        while lane.sent < lane.stored and lane.sent - lane.acked < OUTBOX_WINDOW_COUNT:
            sequence = lane.sent + 1
            message = self._store.outbox.get(outbox_key(partition, sequence))
            invariant(
                message is not None, "untrimmed messages are stored", to=partition, seq=sequence
            )
            assert message is not None
            try:
                self._deliver(partition, sequence, message)
            except PerdureError:
                lane.retry = self._loop.call_later(
                    _REFUSED_RETRY_SECONDS, self._pump_again, partition
                )
                return
            lane.sent = sequence
            self.sent_count += 1
            if self._watch is None:
                self._watch = self._loop.call_later(OUTBOX_STALL_MS / 1000, self._look)

    def _look(self) -> None:
        """Send again where something is in flight and nothing was acknowledged since last time."""
        self._watch = None
        for partition, lane in self._lanes.items():
            if lane.sent == lane.acked:
                lane.stalled_at = -1
            elif lane.stalled_at == lane.acked:
                self.resend_later(partition)
            else:
                lane.stalled_at = lane.acked
        if any(lane.acked < lane.stored for lane in self._lanes.values()):
            self._watch = self._loop.call_later(OUTBOX_STALL_MS / 1000, self._look)

    def _pump_again(self, partition: int) -> None:
        self._lanes[partition].retry = None
        self._pump(partition)

    def _trim_applied(self) -> None:
        self._trimmer = None
        untrimmed, self._untrimmed = self._untrimmed, {}
        for partition, sequence in untrimmed.items():
            try:
                self._trim(partition, sequence)
            except PerdureError:
                newest = max(sequence, self._untrimmed.get(partition, 0))
                self._untrimmed[partition] = newest
        if self._untrimmed and not self._is_stopped:
            self._trimmer = self._loop.call_later(
                OUTBOX_TRIM_INTERVAL_MS / 1000, self._trim_applied
            )
