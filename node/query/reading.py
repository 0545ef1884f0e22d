"""What one statement reads: a state of each partition, sessions, and the registry; how much of it.
What other nodes lead they read for it.

Made on the event loop, read on threads. A scan stands back after each stretch of work, so that the
event loop never waits long for the interpreter, and stops when the statement is given up.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice
from typing import NamedTuple, Protocol

from perdure.core.clock import Clock
from perdure.core.errors import PerdureError, QueryTooLarge
from perdure.core.ids import InvocationId
from perdure.core.limits import QUERY_PAUSE_MS, QUERY_SCAN_BYTES, QUERY_SCAN_ROWS
from perdure.node.query.bounds import Need, Order, Range
from perdure.node.query.live import Live
from perdure.node.registry.model import Registry
from perdure.storage.env import Snapshot
from perdure.storage.keys import after_prefix
from perdure.storage.partition_store import TableId

_MERGE_ROWS_MIN = 8


class RawRow(NamedTuple):
    """A row as it is stored; the table's number is cut off its key."""

    partition: int
    key: bytes
    value: bytes


class Wanted(NamedTuple):
    """What a scan of a table is asked for: columns, and rows that meet the packed condition, which
    looks at what is ``filtered``."""

    table: str
    columns: tuple[str, ...]
    filtered: frozenset[str]
    need: Need
    condition: bytes | None


class DistantScan(Protocol):
    """The packed batches of a scan that another node makes."""

    def pieces(self) -> Iterator[bytes]:
        """On a thread, which waits for them.

        Raises:
            PerdureError: there will be no more.
        """
        ...

    def close(self) -> None:
        """Nobody wants more; from any thread."""
        ...


class Elsewhere(Protocol):
    """What a statement reads of one other node."""

    @property
    def partitions(self) -> frozenset[int]:
        """Those of them whose leader it is."""
        ...

    def scan(self, wanted: Wanted) -> DistantScan:
        """Have it begin; from any thread."""
        ...

    def give_up(self) -> None:
        """Stop scans; from any thread."""
        ...

    def close(self) -> None:
        """Let go of what is read there; on the event loop."""
        ...


class Reading:
    """One statement's view of the node. ``rows_read`` counts rows taken from tables; ``failure`` is
    why there can't be more of them."""

    def __init__(
        self,
        snapshots: Mapping[int, Snapshot],
        live: Mapping[InvocationId, Live],
        registry: Registry,
        clock: Clock,
        elsewhere: Sequence[Elsewhere] = (),
    ) -> None:
        self.live = live
        self.registry = registry
        self.elsewhere = elsewhere
        self.partitions = frozenset(snapshots)
        self.rows_read = 0
        self.failure: PerdureError | None = None
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

    def heads(
        self, ranges: Sequence[Range], tail: int, limit: int
    ) -> list[tuple[int, bytes]] | None:
        """What keys in ranges begin with, but for their last ``tail`` octets: each with its
        partition, once. None: they are more than ``limit``."""
        found: list[tuple[int, bytes]] = []
        for partition, start, upper in ranges:
            lower = start
            while lower < upper:
                self.pause()
                first = self._snapshots[partition].scan(lower, upper, 1, QUERY_SCAN_BYTES)
                if not first:
                    break
                self.rows_read += 1
                if len(found) == limit:
                    return None
                head = first[0][0][:-tail]
                found.append((partition, head))
                lower = after_prefix(head)
        return found

    def merge(self, ranges: Sequence[Range], tail: int, order: Order) -> Iterator[list[RawRow]]:
        """The rows of ranges in one order: that of the last ``tail`` octets of their keys, by which
        those of each range are in order. A few at first, then more and more."""
        count = max(order.limit // max(len(ranges), 1), _MERGE_ROWS_MIN)
        runs = [self._run(each, order.is_descending, count) for each in ranges]
        rows = merge(*runs, key=lambda raw: raw.key[-tail:], reverse=order.is_descending)
        # One more than is enough shows whether others were made in the same ms as the last.
        count = min(max(order.limit + 1, _MERGE_ROWS_MIN), QUERY_SCAN_ROWS)
        while found := list(islice(rows, count)):
            yield found
            count = min(2 * count, QUERY_SCAN_ROWS)

    def _run(self, found_in: Range, is_descending: bool, count: int) -> Iterator[RawRow]:
        """The rows of one range, read in steps that grow."""
        partition, lower, upper = found_in
        snapshot = self._snapshots[partition]
        scan = snapshot.scan_back if is_descending else snapshot.scan
        while True:
            self.pause()
            count = min(count, QUERY_SCAN_ROWS)
            found = scan(lower, upper, count, QUERY_SCAN_BYTES)
            self.rows_read += len(found)
            for key, value in found:
                yield RawRow(partition, key[1:], value)
            if len(found) < count:
                return  # keys of this kind have no values to speak of
            if is_descending:
                upper = found[-1][0]
            else:
                lower = found[-1][0] + b"\x00"
            count *= 2

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
        for other in self.elsewhere:
            other.give_up()

    def close(self) -> None:
        """Let go of the tables."""
        self.give_up()
        for other in self.elsewhere:
            other.close()
        for snapshot in self._snapshots.values():
            snapshot.close()
