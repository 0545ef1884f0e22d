"""What one statement reads: a state of each partition, sessions, and the registry; how much of it.

Made on the event loop, read on threads. A scan stands back after each stretch of work, so that the
event loop never waits long for the interpreter, and stops when the statement is given up.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from perdure.core.clock import Clock
from perdure.core.errors import QueryTooLarge
from perdure.core.ids import InvocationId
from perdure.core.limits import QUERY_PAUSE_MS, QUERY_SCAN_BYTES, QUERY_SCAN_ROWS
from perdure.node.query.bounds import Range
from perdure.node.query.live import Live
from perdure.node.registry.model import Registry
from perdure.storage.env import Snapshot
from perdure.storage.partition_store import TableId


class RawRow(NamedTuple):
    """A row as it is stored; the table's number is cut off its key."""

    partition: int
    key: bytes
    value: bytes


class Reading:
    """One statement's view of the node. ``rows_read`` counts rows taken from tables."""

    def __init__(
        self,
        snapshots: Mapping[int, Snapshot],
        live: Mapping[InvocationId, Live],
        registry: Registry,
        clock: Clock,
    ) -> None:
        self.live = live
        self.registry = registry
        self.rows_read = 0
        self._snapshots = snapshots
        self._clock = clock
        self._given_up = threading.Event()
        self._worked_since = clock.monotonic()

    def get(self, partition: int, table: TableId, key: bytes) -> bytes | None:
        """One row of a partition that the statement reads."""
        self.rows_read += 1
        return self._snapshots[partition].get(bytes([table]) + key)

    def scan(self, ranges: Sequence[Range]) -> Iterator[list[RawRow]]:
        """The rows of ranges, in their order, a bounded number at a time."""
        for partition, start, upper in ranges:
            lower = start
            while True:
                self.pause()
                found = self._snapshots[partition].scan(
                    lower, upper, QUERY_SCAN_ROWS, QUERY_SCAN_BYTES
                )
                if not found:
                    break
                self.rows_read += len(found)
                yield [RawRow(partition, key[1:], value) for key, value in found]
                lower = found[-1][0] + b"\x00"

    def pause(self) -> None:
        """Let others work.

        Raises:
            QueryTooLarge: nobody waits for the statement any more.
        """
        if self._clock.monotonic() - self._worked_since > QUERY_PAUSE_MS / 1000:
            self._given_up.wait(QUERY_PAUSE_MS / 1000)
            self._worked_since = self._clock.monotonic()
        if self._given_up.is_set():
            raise QueryTooLarge("the statement was given up")

    def give_up(self) -> None:
        """Stop scans; from any thread."""
        self._given_up.set()

    def close(self) -> None:
        """Let go of the tables."""
        self.give_up()
        for snapshot in self._snapshots.values():
            snapshot.close()
