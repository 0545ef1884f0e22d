"""A simulated disk: what was not synced may be dropped, torn or reordered when the power goes.

A file has a cache (what reads see) and a platter (what survives), both in sectors; a sector is
written whole or not at all. A folder's new names, renames and removals reach the platter in order,
but no sooner than its sync unless luck has it. After a failed sync the kernel takes the pages for
clean: they are seen until the power goes, and no later sync writes them.

A *machine* owns a disk for good; a power loss or a kill ends one life of it. Handles of an earlier
life are dead.
"""

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from perdure.core.limits import SECTOR_BYTES
from perdure.storage.disk import DiskFullError


class PowerLoss(SystemExit):
    """The machine is off. Derives from SystemExit so that event loops let it through at once."""


@dataclass(eq=False)
class _Inode:
    number: int  # for an order that doesn't depend on addresses
    cache: bytearray
    platter: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set[int])

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.cache):
            self.cache.extend(bytes(end - len(self.cache)))
        self.cache[offset:end] = data
        self.dirty.update(range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)))

    def persist(self, sectors: list[int]) -> None:
        for sector in sectors:
            start = sector * SECTOR_BYTES
            content = self.cache[start : start + SECTOR_BYTES]
            end = start + len(content)
            if end > len(self.platter):
                self.platter.extend(bytes(end - len(self.platter)))
            self.platter[start:end] = content

    def sync(self) -> None:
        self.persist(sorted(self.dirty))
        self.dirty.clear()


@dataclass(frozen=True)
class _Rename:
    source: str
    target: str


@dataclass(frozen=True)
class _Link:
    name: str
    inode: _Inode


@dataclass(frozen=True)
class _Unlink:
    name: str


_FolderOperation = _Rename | _Link | _Unlink


class SimFile:
    """An open file of one life."""

    def __init__(self, disk: "SimDisk", inode: _Inode) -> None:
        self._disk = disk
        self._life = disk.life
        self._inode = inode

    def write(self, parts: Sequence[bytes], offset: int) -> None:
        self._check()
        self._inode.write(b"".join(parts), offset)
        self._disk.step()

    def read(self, size: int, offset: int) -> bytes:
        self._check()
        return bytes(self._inode.cache[offset : offset + size])

    def size(self) -> int:
        self._check()
        return len(self._inode.cache)

    def sync_data(self) -> None:
        self._check()
        self._disk.sync_inode(self._inode)

    def close(self) -> None:
        """Handles cost nothing."""

    def _check(self) -> None:
        if self._life != self._disk.life:
            raise PowerLoss("a handle of an earlier life")


class SimDisk:
    """Implements ``storage.disk.Disk``. Everything random comes from ``dice``."""

    def __init__(self, dice: random.Random, capacity: int = 1 << 40) -> None:
        self._dice = dice
        self.capacity = capacity
        self.life = 0
        self.steps = 0
        self.power_loss_at: int | None = None  # the step at which the power goes
        self._inodes = 0
        self.sync_failure_at: int | None = None  # the sync, counted from now, that fails
        self.on_sync: Callable[[], None] = lambda: None
        self._names: dict[str, _Inode] = {}
        self._platter_names: dict[str, _Inode] = {}
        self._folders: set[str] = {""}
        self._pending: dict[str, list[_FolderOperation]] = {}

    # --- The end of a life ----------------------------------------------------------------------

    def lose_power(self) -> None:
        """Any part of what was not synced is gone; the next life sees the platter."""
        for operations in self._pending.values():
            for operation in operations[: self._dice.randint(0, len(operations))]:
                _perform(self._platter_names, operation)
        self._pending.clear()
        chance = self._dice.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        everything = {*self._names.values(), *self._platter_names.values()}
        for inode in sorted(everything, key=lambda inode: inode.number):
            inode.persist([s for s in sorted(inode.dirty) if self._dice.random() < chance])
        for inode in everything:
            inode.cache = bytearray(inode.platter)
            inode.dirty.clear()
        self._names = dict(self._platter_names)
        self.kill()

    def kill(self) -> None:
        """The process is gone; the machine goes on, with everything in its cache."""
        self.life += 1
        self.power_loss_at = self.sync_failure_at = None

    def step(self) -> None:
        """An operation happened; the power may go here."""
        self.steps += 1
        if self.power_loss_at is not None and self.steps >= self.power_loss_at:
            self.power_loss_at = None
            raise PowerLoss(f"at disk step {self.steps}")

    # --- storage.disk.Disk ----------------------------------------------------------------------

    def make_folder(self, name: str) -> None:
        parts = name.split("/")
        for count in range(1, len(parts) + 1):
            self._folders.add("/".join(parts[:count]))

    def list_folder(self, name: str) -> list[str]:
        if name not in self._folders:
            raise FileNotFoundError(name)
        return sorted(path.rpartition("/")[2] for path in self._names if _folder(path) == name)

    def exists(self, name: str) -> bool:
        return name in self._names or name in self._folders

    def open(self, name: str) -> SimFile:
        return SimFile(self, self._names[name])

    def create_zeroed(self, name: str, size: int) -> SimFile:
        if name in self._names:
            raise FileExistsError(name)
        self._need(size)
        inode = self._new_inode(b"")
        self._change(_Link(name, inode))
        half = size // 2
        inode.write(bytes(half), 0)
        self.step()
        inode.write(bytes(size - half), half)
        self.sync_inode(inode)
        self.sync_folder(_folder(name))
        return SimFile(self, inode)

    def allocate(self, name: str, size: int) -> None:
        if name in self._names:
            raise FileExistsError(name)
        self._need(size)
        self._change(_Link(name, self._new_inode(bytes(size), is_durable=True)))

    def replace(self, name: str, content: bytes) -> None:
        self._need(len(content))
        inode = self._new_inode(b"")
        temporary = name + ".tmp"
        if temporary in self._names:
            self._change(_Unlink(temporary))
        self._change(_Link(temporary, inode))
        inode.write(content, 0)
        self.sync_inode(inode)
        self._change(_Rename(temporary, name))
        self.sync_folder(_folder(name))

    def read_file(self, name: str) -> bytes:
        return bytes(self._names[name].cache)

    def rename(self, source: str, target: str) -> None:
        self._change(_Rename(source, target))

    def remove(self, name: str) -> None:
        self._change(_Unlink(name))

    def sync_folder(self, name: str) -> None:
        self.step()
        for operation in self._pending.pop(name, []):
            _perform(self._platter_names, operation)
        self.step()

    def free_bytes(self) -> int:
        return self.capacity - sum(len(inode.cache) for inode in self._names.values())

    # --- For tests ------------------------------------------------------------------------------

    def flip(self, name: str, offset: int, mask: int) -> None:
        """Bits rot, in the cache as on the platter."""
        inode = self._names[name]
        inode.cache[offset] ^= mask
        if offset < len(inode.platter):
            inode.platter[offset] ^= mask

    def is_dirty(self, prefix: str) -> bool:
        """Whether a file of which the name begins so has content that was not synced."""
        return any(node.dirty for name, node in self._names.items() if name.startswith(prefix))

    def overwrite(self, name: str, content: bytes) -> None:
        """Put a file's content, durably and at once."""
        self._names[name] = self._platter_names[name] = self._new_inode(content, is_durable=True)

    def copy(self) -> "SimDisk":
        """The same bytes on another disk, all of them durable."""
        twin = SimDisk(self._dice, self.capacity)
        twin._folders = set(self._folders)
        for name, inode in self._names.items():
            twin.overwrite(name, bytes(inode.cache))
        return twin

    # --- Inside ---------------------------------------------------------------------------------

    def sync_inode(self, inode: _Inode) -> None:
        """Sync a file's content, or fail and forget it."""
        self.step()
        self.on_sync()
        if self.sync_failure_at is not None:
            self.sync_failure_at -= 1
            if self.sync_failure_at < 0:
                self.sync_failure_at = None
                inode.persist([s for s in sorted(inode.dirty) if self._dice.random() < 0.5])
                inode.dirty.clear()
                raise OSError(errno.EIO, "simulated sync failure")
        inode.sync()
        self.step()

    def _new_inode(self, content: bytes, *, is_durable: bool = False) -> _Inode:
        self._inodes += 1
        return _Inode(
            self._inodes, bytearray(content), bytearray(content) if is_durable else bytearray()
        )

    def _need(self, size: int) -> None:
        if size > self.free_bytes():
            raise DiskFullError(errno.ENOSPC, "simulated disk full")

    def _change(self, operation: _FolderOperation) -> None:
        _perform(self._names, operation)
        name = operation.target if isinstance(operation, _Rename) else operation.name
        self._pending.setdefault(_folder(name), []).append(operation)
        self.step()


def _perform(names: dict[str, _Inode], operation: _FolderOperation) -> None:
    match operation:
        case _Link():
            names[operation.name] = operation.inode
        case _Unlink():
            del names[operation.name]
        case _Rename():
            names[operation.target] = names.pop(operation.source)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
