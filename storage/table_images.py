"""A partition's tables as one file: held at a moment, copied beside everything else, put back.

``hold_tables`` fixes the last commit; ``HeldTables.copy`` writes it to a folder while the
environment goes on, and the copy is believed only for what it says itself: its applied LSN is read
from it, never from memory. The simulated twin is in tests/sim/table_images.py.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from perdure.core.errors import SnapshotDamaged
from perdure.storage.disk import make_durable_folder, sync_path
from perdure.storage.env import LmdbEnv, PinnedState, read_only
from perdure.storage.partition_store import META_KEY, STORE_FORMAT_VERSION, Meta

TABLES_FILE = "data.mdb"
_BEYOND = b"\xff"  # tables are named by bytes below


class TableImage(Protocol):
    """A partition's tables as bytes. ``meta``: what the tables say of themselves."""

    @property
    def meta(self) -> Meta: ...

    @property
    def size(self) -> int: ...

    def read(self, size: int, offset: int) -> bytes:
        """That many bytes; fewer only at the end."""
        ...

    def discard(self) -> None:
        """It is not needed any more."""
        ...


class HeldTables(Protocol):
    """One committed state of a partition's tables."""

    def copy(self) -> TableImage:
        """Make an image and let go of the state; on any thread, once.

        Raises:
            SnapshotDamaged: the copy is not what a partition's tables are.
            OSError: no room, or the disk failed.
        """
        ...

    def release(self) -> None:
        """Let go of the state without a copy; fine if it is let go already."""
        ...


class FolderImage:
    """An LMDB file in a folder of its own."""

    def __init__(self, folder: Path, meta: Meta) -> None:
        self.meta = meta
        self._folder = folder
        self._file = (folder / TABLES_FILE).open("rb")
        self.size = (folder / TABLES_FILE).stat().st_size

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)

    def discard(self) -> None:
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class LmdbTables:
    """Tables of an LMDB environment, held; ``scratch`` is a folder that doesn't exist yet."""

    def __init__(self, env: LmdbEnv, scratch: Path) -> None:
        self._pinned: PinnedState = env.pin()
        self._scratch = scratch

    def copy(self) -> FolderImage:
        try:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir(parents=True)
            self._pinned.copy_to(self._scratch)
            return FolderImage(self._scratch, read_meta(self._scratch, self._pinned.row_count))
        except BaseException:  # bulkhead: let go of what is held, and raise it again
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        finally:
            self.release()

    def release(self) -> None:
        self._pinned.release()


class UnpackedTables:
    """An image put into a folder of its own, which must not be there, to be read row by row.

    Raises, when it is made:
        SnapshotDamaged: it isn't a partition's tables.
        OSError: no room, or the disk failed.
    """

    def __init__(self, chunks: Iterable[bytes], folder: Path) -> None:
        self._folder = folder
        try:
            self.meta = install_tables(chunks, folder)
            self._env = LmdbEnv(folder)
        except BaseException:  # bulkhead: leave nothing behind, and raise it again
            shutil.rmtree(folder.with_name(folder.name + ".partial"), ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._state = self._env.snapshot()

    def scan(self, lower: bytes, rows_max: int, bytes_max: int) -> list[tuple[bytes, bytes]]:
        return self._state.scan(lower, _BEYOND, rows_max, bytes_max)

    def discard(self) -> None:
        self._state.close()
        self._env.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def read_meta(folder: Path, row_count: int | None = None) -> Meta:
    """What the tables in a folder say of themselves. ``row_count`` None: all rows are looked at.

    Raises:
        SnapshotDamaged: they are not what a partition's tables are.
    """
    raw = read_only(folder, META_KEY, row_count)
    if raw is None:
        raise SnapshotDamaged(f"the tables in {folder} don't say how far they are")
    try:
        meta = msgspec.msgpack.decode(raw, type=Meta)
    except msgspec.MsgspecError as error:
        raise SnapshotDamaged(f"the tables in {folder} can't be read: {error}") from error
    if meta.format > STORE_FORMAT_VERSION:
        raise SnapshotDamaged(f"the tables in {folder} have format {meta.format}: too new")
    return meta


def install_tables(
    chunks: Iterable[bytes], folder: Path, check: Callable[[Meta], None] = lambda _meta: None
) -> Meta:
    """Put an image into ``folder``, which must not exist; durable on return.

    It appears whole, under its name, or not at all; ``check`` may refuse it by raising.

    Raises:
        SnapshotDamaged: it isn't a partition's tables.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_durable_folder(partial.absolute())
    with (partial / TABLES_FILE).open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
    meta = read_meta(partial)
    check(meta)
    sync_path(partial / TABLES_FILE)
    sync_path(partial)
    partial.rename(folder)
    sync_path(folder.parent)
    return meta
