"""The memtable: what was applied since the last flush, as plain dictionaries.

A plain table maps keys to rows. A grouped table maps a group to its rows by suffix, and can be
cleared as a whole. A row of None is a tombstone: it hides what lies below. Rows are immutable, so
a frozen memtable may be encoded by another thread.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final


class Group:
    """Rows of one group; ``cleared``: nothing below this memtable belongs to it any more."""

    __slots__ = ("cleared", "rows")

    def __init__(self) -> None:
        self.cleared = False
        self.rows: dict[bytes, object] = {}


class Memtable:
    """Rows by table number. ``bytes`` estimates what they weigh."""

    def __init__(self, table_count: int) -> None:
        self.rows: list[dict[bytes, object]] = [{} for _ in range(table_count)]
        self.groups: list[dict[bytes, Group]] = [{} for _ in range(table_count)]
        self.bytes = 0
        self._ordered: list[list[bytes]] = [[] for _ in range(table_count)]

    def filed_from(
        self, table: int, lower: bytes, file: Callable[[bytes], bytes]
    ) -> Iterator[bytes]:
        """Keys of a plain table as ``file`` writes them, from ``lower`` on, ascending.

        Keys never leave a memtable, so only those that came since the last call have to be put in
        order; whoever scans page by page doesn't sort everything for each page.
        """
        rows, keys = self.rows[table], self._ordered[table]
        if len(keys) < len(rows):
            keys.extend(map(file, islice(rows, len(keys), None)))
            keys.sort()
        return islice(keys, bisect_left(keys, lower), None)

    def group(self, table: int, group: bytes) -> Group:
        """The group's rows, made if there are none yet."""
        found = self.groups[table].get(group)
        if found is None:
            found = self.groups[table][group] = Group()
        return found

    def is_empty(self) -> bool:
        return not any(self.rows) and not any(self.groups)


MISSING: Final = object()
"""Stands for "this layer doesn't know", where None means "deleted"."""

ROW_OVERHEAD_BYTES: Final = 300
"""What a write costs beyond its payload: key, dictionary slot, small structs. Measured over the
life of invocations: a memtable weighs, within a quarter, what it says."""
