"""An ordered environment in memory: the port of storage/env.py without a disk, for pure tests."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from perdure.storage.env import Snapshot


class DictSnapshot:
    """The port of a snapshot over a dictionary that nobody changes."""

    def __init__(self, content: Mapping[bytes, bytes]) -> None:
        self._content = content
        self._keys = sorted(content)

    def get(self, key: bytes) -> bytes | None:
        return self._content.get(key)

    def scan(
        self, lower: bytes, upper: bytes, rows_max: int, bytes_max: int
    ) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        size = 0
        for key in self._keys[bisect_left(self._keys, lower) :]:
            if key >= upper or len(found) >= rows_max or size >= bytes_max:
                break
            found.append((key, self._content[key]))
            size += len(self._content[key])
        return found

    def scan_back(
        self, lower: bytes, upper: bytes, rows_max: int, bytes_max: int
    ) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        size = 0
        for key in reversed(self._keys[: bisect_left(self._keys, upper)]):
            if key < lower or len(found) >= rows_max or size >= bytes_max:
                break
            found.append((key, self._content[key]))
            size += len(self._content[key])
        return found

    def close(self) -> None:
        """Nothing is held."""


class MemoryEnv:
    """Reads see the last ``refresh``, as in the real one."""

    def __init__(self, content: dict[bytes, bytes] | None = None) -> None:
        self._committed = dict(content or {})
        self._visible = self._committed
        self._keys = sorted(self._visible)

    def content(self) -> dict[bytes, bytes]:
        """Everything committed."""
        return dict(self._committed)

    def get(self, key: bytes) -> bytes | None:
        return self._visible.get(key)

    def scan(self, lower: bytes, upper: bytes) -> Iterator[tuple[bytes, bytes]]:
        start = bisect_left(self._keys, lower)
        for key in self._keys[start:]:
            if key >= upper:
                return
            yield key, self._visible[key]

    def commit(
        self,
        cleared: Sequence[tuple[bytes, bytes]],
        deleted: Sequence[bytes],
        written: Sequence[tuple[bytes, bytes]],
    ) -> None:
        changed = dict(self._committed)
        for lower, upper in cleared:
            for key in [key for key in changed if lower <= key < upper]:
                del changed[key]
        for key in deleted:
            changed.pop(key, None)
        changed.update(written)
        self._committed = changed

    def refresh(self) -> None:
        self._visible = self._committed
        self._keys = sorted(self._visible)

    def snapshot(self) -> Snapshot:
        return DictSnapshot(self._committed)

    def grow(self) -> bool:
        raise AssertionError("memory is never full")

    def close(self) -> None:
        pass
