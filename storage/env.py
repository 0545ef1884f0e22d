"""One ordered key-value environment per partition: the port, and LMDB behind it.

LMDB commits are synced before they return, so a torn database can't exist and what a commit wrote
is durable. Reads see one committed state until ``refresh``. Writes come from one storage thread.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import lmdb

from perdure.core.errors import PartitionUnavailable, SnapshotDamaged, StoreUnreadable
from perdure.core.limits import (
    LMDB_COMMITS_PER_RELEASE,
    LMDB_KEY_BYTES_MAX,
    LMDB_MAP_BYTES_INITIAL,
    LMDB_READERS_MAX,
    MIB,
)
from perdure.storage.disk import sync_path
from perdure.storage.mapped_pages import release_mapped_pages

# Rows per native call: large enough to amortise the call, small enough to hand over the
# interpreter lock often.
_PUT_BATCH_COUNT = 256
# Address space for what is written while a state is pinned; it costs nothing until it is used.
_PIN_ROOM_BYTES = 1024 * MIB


class MapFull(Exception):
    """The environment's map is too small for the commit; ``grow`` it and commit again."""


class Snapshot(Protocol):
    """One committed state of an environment, for one reader at a time, on any thread.

    Growing the environment may move it on to the last commit.
    """

    def get(self, key: bytes) -> bytes | None:
        """The value of a key.

        Raises:
            PartitionUnavailable: the environment was closed.
        """
        ...

    def scan(
        self, lower: bytes, upper: bytes, rows_max: int, bytes_max: int
    ) -> list[tuple[bytes, bytes]]:
        """The first entries with keys in ``[lower, upper)``: at least one, if there are any.

        Raises:
            PartitionUnavailable: the environment was closed.
        """
        ...

    def scan_back(
        self, lower: bytes, upper: bytes, rows_max: int, bytes_max: int
    ) -> list[tuple[bytes, bytes]]:
        """The same from the end: the last entries, in descending order.

        Raises:
            PartitionUnavailable: the environment was closed.
        """
        ...

    def close(self) -> None:
        """Let go of the state: until then its pages can't be used again."""
        ...


class Env(Protocol):
    """An ordered map of bytes to bytes with atomic, durable commits."""

    def get(self, key: bytes) -> bytes | None:
        """The value in the state that reads see."""
        ...

    def scan(self, lower: bytes, upper: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Entries with keys in ``[lower, upper)``, ascending. Not across ``refresh``."""
        ...

    def commit(
        self,
        cleared: Sequence[tuple[bytes, bytes]],
        deleted: Sequence[bytes],
        written: Sequence[tuple[bytes, bytes]],
    ) -> None:
        """Remove the ranges ``[lower, upper)`` and keys, then write entries: all or nothing.

        Durable on return. May run on the storage thread while others read.

        Raises:
            MapFull: nothing was written.
            OSError: the disk failed or is full; nothing was written.
        """
        ...

    def refresh(self) -> None:
        """Let reads see the last commit."""
        ...

    def snapshot(self) -> Snapshot:
        """The state of the last commit, to be read beside everything else. Close it soon."""
        ...

    def grow(self) -> bool:
        """Double the map after ``MapFull``; no commit or scan may be under way.

        False: not now, because a state is pinned; try again later.
        """
        ...

    def close(self) -> None: ...


class LmdbEnv:
    """An LMDB environment in a folder of its own."""

    def __init__(self, folder: Path, map_bytes: int = LMDB_MAP_BYTES_INITIAL) -> None:
        try:
            self._env = lmdb.open(
                str(folder),
                map_size=map_bytes,
                max_readers=LMDB_READERS_MAX,
                max_spare_txns=2,
            )
            sync_path(folder)  # LMDB syncs its files, not that they exist
            self._grow_to_content()
            self._reader = self._env.begin(buffers=False)
            self._snapshots: set[LmdbSnapshot] = set()
            self._snapshots_lock = threading.Lock()
            self._pins = 0
            self._is_closing = False
        except lmdb.Error as error:
            raise StoreUnreadable(f"can't open the store at {folder}: {error}") from error
        self._path = folder / "data.mdb"
        self._commits = 0
        if self._env.max_key_size() < LMDB_KEY_BYTES_MAX:
            raise StoreUnreadable(
                f"this build of LMDB takes keys of {self._env.max_key_size()} bytes, perdure needs "
                f"{LMDB_KEY_BYTES_MAX}: install the lmdb package from the registry"
            )

    def get(self, key: bytes) -> bytes | None:
        return self._reader.get(key)

    def scan(self, lower: bytes, upper: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._reader.cursor() as cursor:
            if not cursor.set_range(lower):
                return
            for key, value in cursor:
                if key >= upper:
                    return
                yield key, value

    def commit(
        self,
        cleared: Sequence[tuple[bytes, bytes]],
        deleted: Sequence[bytes],
        written: Sequence[tuple[bytes, bytes]],
    ) -> None:
        try:
            with self._env.begin(write=True) as txn, txn.cursor() as cursor:
                for lower, upper in cleared:
                    found = cursor.set_range(lower)
                    while found and cursor.key() < upper:
                        found = cursor.delete()  # moves on; False when nothing was there
                for key in deleted:
                    txn.delete(key)
                for start in range(0, len(written), _PUT_BATCH_COUNT):
                    cursor.putmulti(written[start : start + _PUT_BATCH_COUNT])
        except lmdb.MapFullError as error:
            raise MapFull from error
        except lmdb.Error as error:
            # What the system says comes without a class of its own: a full disk as ENOSPC or, when
            # a write was cut short, as EIO.
            if type(error) not in (lmdb.DiskError, lmdb.Error):
                raise
            raise OSError(str(error)) from error
        self._commits += 1
        if self._commits % LMDB_COMMITS_PER_RELEASE == 0:
            release_mapped_pages(self._path)

    def refresh(self) -> None:
        self._reader.abort()
        self._reader = self._env.begin(buffers=False)

    def snapshot(self) -> Snapshot:
        return LmdbSnapshot(self._env, self._snapshots, self._snapshots_lock)

    def pin(self) -> "PinnedState":
        """The state of the last commit, held to be copied; no commit may be under way."""
        info = self._env.info()
        used = (info["last_pgno"] + 1) * self._env.stat()["psize"]
        # While pinned it can't grow, and pages that the copy needs are not used again.
        while info["map_size"] < used * 2 + _PIN_ROOM_BYTES and self.grow():
            info = self._env.info()
        with self._snapshots_lock:
            self._pins += 1
            return PinnedState(self._env, self._unpin)

    def grow(self) -> bool:
        # Growing moves the map: no transaction may be open, not even one that only reads.
        with self._snapshots_lock:
            if self._pins:
                return False
            self._reader.abort()
            for snapshot in self._snapshots:
                snapshot.release()
            self._env.set_mapsize(self._env.info()["map_size"] * 2)
            self._reader = self._env.begin(buffers=False)
            for snapshot in self._snapshots:
                snapshot.begin()
            return True

    def close(self) -> None:
        with self._snapshots_lock:
            for snapshot in self._snapshots:
                snapshot.release()
            self._snapshots.clear()
            self._reader.abort()
            self._is_closing = True
            if not self._pins:  # or else the copy under way closes behind itself
                self._env.close()

    def _unpin(self, txn: "lmdb.Transaction[bytes]") -> None:
        with self._snapshots_lock:
            txn.abort()
            self._pins -= 1
            if self._is_closing and not self._pins:
                self._env.close()

    def _grow_to_content(self) -> None:
        info = self._env.info()
        used = (info["last_pgno"] + 1) * self._env.stat()["psize"]
        size = info["map_size"]
        while size < used * 2:
            size *= 2
        if size != info["map_size"]:
            self._env.set_mapsize(size)


class LmdbSnapshot:
    """A read transaction of its own. The lock is shared by all of an environment."""

    def __init__(
        self, env: lmdb.Environment, peers: "set[LmdbSnapshot]", lock: threading.Lock
    ) -> None:
        self._env = env
        self._peers = peers
        self._lock = lock
        self._txn: lmdb.Transaction[bytes] | None = None
        with lock:
            self.begin()
            peers.add(self)

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            return self._open().get(key)

    def scan(
        self, lower: bytes, upper: bytes, rows_max: int, bytes_max: int
    ) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        size = 0
        with self._lock, self._open().cursor() as cursor:
            if not cursor.set_range(lower):
                return found
            for key, value in cursor:
                if key >= upper:
                    break
                found.append((key, value))
                size += len(value)
                if len(found) >= rows_max or size >= bytes_max:
                    break
        return found

    def scan_back(
        self, lower: bytes, upper: bytes, rows_max: int, bytes_max: int
    ) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        size = 0
        with self._lock, self._open().cursor() as cursor:
            is_there = cursor.prev() if cursor.set_range(upper) else cursor.last()
            if not is_there:
                return found
            for key, value in cursor.iterprev():
                if key < lower:
                    break
                found.append((key, value))
                size += len(value)
                if len(found) >= rows_max or size >= bytes_max:
                    break
        return found

    def close(self) -> None:
        with self._lock:
            self.release()
            self._peers.discard(self)

    def begin(self) -> None:
        """See the last commit. Under the lock."""
        self._txn = self._env.begin(buffers=False)

    def release(self) -> None:
        """See nothing. Under the lock."""
        if self._txn is not None:
            self._txn.abort()
            self._txn = None

    def _open(self) -> "lmdb.Transaction[bytes]":
        if self._txn is None:
            raise PartitionUnavailable("the tables are closed: the node is stopping")
        return self._txn


class PinnedState:
    """A committed state that stays what it is, and where it is, until it is let go."""

    def __init__(
        self, env: lmdb.Environment, unpin: "Callable[[lmdb.Transaction[bytes]], None]"
    ) -> None:
        self._env = env
        self._unpin = unpin
        self._txn: lmdb.Transaction[bytes] | None = env.begin(buffers=False)
        self.row_count: int = self._txn.stat()["entries"]

    def copy_to(self, folder: Path) -> None:
        """Write it, without free pages, into an empty folder; on any thread.

        Raises:
            OSError: no room, or the disk failed.
        """
        try:
            self._env.copy(str(folder), compact=True, txn=self._txn)
        except lmdb.Error as error:
            raise OSError(str(error)) from error

    def release(self) -> None:
        """Let go."""
        txn, self._txn = self._txn, None
        if txn is not None:
            self._unpin(txn)


def read_only(folder: Path, key: bytes, row_count: int | None = None) -> bytes | None:
    """One value of an environment that nobody writes to, if it has as many rows as it should.

    ``row_count`` None: as it says itself, and then all of them are looked at.

    Raises:
        SnapshotDamaged: it is no environment, lacks rows, or can't be read.
    """
    try:
        env = lmdb.open(str(folder), readonly=True, lock=False, create=False, max_readers=1)
        try:
            with env.begin() as txn, txn.cursor() as cursor:
                found = txn.stat()["entries"]
                if row_count is None:
                    row_count = sum(1 for _ in cursor.iternext(keys=True, values=False))
                if row_count != found:
                    raise SnapshotDamaged(
                        f"the store at {folder} has {found} rows instead of {row_count}"
                    )
                return txn.get(key)
        finally:
            env.close()
    except lmdb.Error as error:
        raise SnapshotDamaged(f"the store at {folder} can't be read: {error}") from error
