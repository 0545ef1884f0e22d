"""A partition's tables as bytes, without files: the twin of storage/table_images.py."""

from dataclasses import dataclass

import msgspec
from tests.sim.ports import SimTables

from perdure.core.errors import SnapshotDamaged
from perdure.storage.partition_store import META_KEY, Meta


@dataclass
class SimImage:
    """Rows and what they say of themselves."""

    content: bytes
    meta: Meta

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, size: int, offset: int) -> bytes:
        return self.content[offset : offset + size]

    def discard(self) -> None:
        """Memory is free."""


class SimHeldTables:
    """One committed state."""

    def __init__(self, tables: SimTables) -> None:
        self._rows = tables.committed

    def copy(self) -> SimImage:
        return image_of(self._rows)

    def release(self) -> None:
        """Nothing is held up."""


def image_of(rows: dict[bytes, bytes]) -> SimImage:
    """An image of rows."""
    raw = rows.get(META_KEY)
    if raw is None:
        raise SnapshotDamaged("the tables don't say how far they are")
    content = msgspec.msgpack.encode(sorted(rows.items()))
    return SimImage(content, msgspec.msgpack.decode(raw, type=Meta))


def rows_of(content: bytes) -> dict[bytes, bytes]:
    """The rows of an image."""
    return dict(msgspec.msgpack.decode(content, type=list[tuple[bytes, bytes]]))
