"""The last records of a segment in memory, for whoever follows it here: as they were stored.

A reader close behind the tail finds them without a look into the log's files, where frames of all
partitions alternate. What it has read is let go.
"""

from collections import deque

from perdure.core.limits_log import RECENT_BYTES_MAX


class RecentRecords:
    """A run of records without a gap, which ends at the last one stored."""

    def __init__(self) -> None:
        self._batches: deque[tuple[int, tuple[bytes, ...]]] = deque()
        self._end = 0
        self._bytes = 0

    def add(self, first_offset: int, records: tuple[bytes, ...]) -> None:
        """Records were stored."""
        if first_offset != self._end:
            self._batches.clear()
            self._bytes = 0
        self._batches.append((first_offset, records))
        self._end = first_offset + len(records)
        self._bytes += sum(map(len, records))
        while self._bytes > RECENT_BYTES_MAX and len(self._batches) > 1:
            self._drop()

    def take(self, lower: int, upper: int, bytes_max: int) -> tuple[bytes, ...]:
        """Records from ``lower`` on, as many as are here; none: they aren't. Those below are not
        asked for again."""
        while self._batches and self._batches[0][0] + len(self._batches[0][1]) <= lower:
            self._drop()
        if not self._batches or self._batches[0][0] > lower:
            return ()
        found: list[bytes] = []
        size = 0
        for first, records in self._batches:
            if first >= upper or size >= bytes_max:
                break
            part = records[max(lower - first, 0) : upper - first]
            found += part
            size += sum(map(len, part))
        return tuple(found)

    def _drop(self) -> None:
        _, records = self._batches.popleft()
        self._bytes -= sum(map(len, records))
