"""The port of the disk: files with positional reads and writes, explicit syncs, atomic renames.

Everything that must survive a power cut goes through this port (the partition stores go through
``storage/env.py``, whose library syncs by itself). The simulator's twin drops, tears and reorders
whatever was not synced.
"""

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_IOV_MAX = 1024
_ZEROS = bytes(1024 * 1024)


class DiskFullError(OSError):
    """No space left for new blocks; what exists can still be overwritten."""


class File(Protocol):
    """An open file. Offsets are bytes from its start."""

    def write(self, parts: Sequence[bytes], offset: int) -> None:
        """Write ``parts`` back to back at ``offset``; all of them or an OSError."""
        ...

    def read(self, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the file's end."""
        ...

    def size(self) -> int: ...

    def sync_data(self) -> None:
        """Make written content durable; metadata only as far as reading it back needs."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """A directory tree. Names are relative to its root, with ``/`` between folders."""

    def make_folder(self, name: str) -> None:
        """Create the folder and its parents, durably; existing ones are fine."""
        ...

    def list_folder(self, name: str) -> list[str]:
        """Names of the entries of an existing folder, sorted."""
        ...

    def exists(self, name: str) -> bool: ...

    def open(self, name: str) -> File:
        """Open an existing file for reading and overwriting."""
        ...

    def create_zeroed(self, name: str, size: int) -> File:
        """A new file of ``size`` zero bytes whose blocks are written and synced.

        Raises:
            DiskFullError: not enough space; nothing of the file is left behind.
        """
        ...

    def allocate(self, name: str, size: int) -> None:
        """A new file that holds ``size`` bytes of the disk; its content doesn't matter.

        Raises:
            DiskFullError: not enough space; nothing of the file is left behind.
        """
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Put ``content`` under ``name``: after a crash it is wholly the old or wholly the new.

        Durable on return.

        Raises:
            DiskFullError: no room for the new content; the old one stands.
            OSError: the disk failed, and which of the two stands is unknown.
        """
        ...

    def read_file(self, name: str) -> bytes: ...

    def rename(self, source: str, target: str) -> None:
        """Atomic; durable only after ``sync_folder`` of the folders involved."""
        ...

    def remove(self, name: str) -> None: ...

    def sync_folder(self, name: str) -> None: ...

    def free_bytes(self) -> int: ...


class OsFile:
    """A file descriptor."""

    def __init__(self, path: Path, flags: int) -> None:
        self._fd = os.open(path, flags | os.O_CLOEXEC, 0o644)

    def write(self, parts: Sequence[bytes], offset: int) -> None:
        for start in range(0, len(parts), _IOV_MAX):
            slab = parts[start : start + _IOV_MAX]
            expected = sum(map(len, slab))
            written = os.pwritev(self._fd, slab, offset)
            if written != expected:
                # A short write is legal: finish it the simple way.
                rest = memoryview(b"".join(slab))[written:]
                position = offset + written
                while rest:
                    count = os.pwrite(self._fd, rest, position)
                    rest, position = rest[count:], position + count
            offset += expected

    def read(self, size: int, offset: int) -> bytes:
        chunks: list[bytes] = []
        while size > 0:
            chunk = os.pread(self._fd, size, offset)
            if not chunk:
                break
            chunks.append(chunk)
            size -= len(chunk)
            offset += len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def sync_data(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class OsDisk:
    """The real file system below one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make_folder(self, name: str) -> None:
        make_durable_folder(self.root / name)

    def list_folder(self, name: str) -> list[str]:
        return sorted(os.listdir(self.root / name))

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def open(self, name: str) -> OsFile:
        return OsFile(self.root / name, os.O_RDWR)

    def create_zeroed(self, name: str, size: int) -> OsFile:
        path = self.root / name
        file = OsFile(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            for offset in range(0, size, len(_ZEROS)):
                file.write([_ZEROS[: min(len(_ZEROS), size - offset)]], offset)
            file.sync_data()
            sync_path(path.parent)
        except OSError as error:
            file.close()
            path.unlink()
            _raise_full(error, path)
            raise
        return file

    def allocate(self, name: str, size: int) -> None:
        path = self.root / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            else:  # macOS: only written blocks are ours
                for offset in range(0, size, len(_ZEROS)):
                    os.pwrite(fd, _ZEROS[: min(len(_ZEROS), size - offset)], offset)
        except OSError as error:
            path.unlink()
            _raise_full(error, path)
            raise
        finally:
            os.close(fd)

    def replace(self, name: str, content: bytes) -> None:
        path = self.root / name
        temporary = path.with_name(path.name + ".tmp")
        try:
            file = OsFile(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                file.write([content], 0)
                file.sync_data()
            finally:
                file.close()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            _raise_full(error, path)
            raise
        temporary.rename(path)
        sync_path(path.parent)

    def read_file(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def rename(self, source: str, target: str) -> None:
        (self.root / source).rename(self.root / target)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def sync_folder(self, name: str) -> None:
        sync_path(self.root / name)

    def free_bytes(self) -> int:
        stat = os.statvfs(self.root)
        return stat.f_bavail * stat.f_frsize


class FolderLock:
    """An exclusive lock on a folder, held while the process lives (flock on ``LOCK``)."""

    def __init__(self, root: Path) -> None:
        self._fd = os.open(root / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def try_acquire(self) -> bool:
        """Take the lock and write our process id into it; False when another process has it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        return True

    def holder(self) -> str:
        """What the holder wrote: its process id."""
        return os.pread(self._fd, 64, 0).decode(errors="replace").strip()

    def release(self) -> None:
        os.close(self._fd)


def make_durable_folder(path: Path) -> None:
    """Make a folder and its missing parents; each is durable in the one above it."""
    missing = [path] if not path.exists() else []
    while missing and not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_path(folder.parent)


def _raise_full(error: OSError, path: Path) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(error.errno, "no space", str(path)) from error


def sync_path(path: Path) -> None:
    """Make a folder's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
