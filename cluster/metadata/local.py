"""Metadata of a single node: one file per register, replaced atomically.

Safe because the data directory is locked: this process is the only writer. A register's file is
its version (u64), the CRC of version and value (u32), and the value. After a write that failed for
another reason than a full disk nobody can tell what the disk holds: every call fails from then on.
"""

import zlib
from collections.abc import Callable

from perdure.cluster.metadata.store import CasOutcome, Conflict, Versioned, check_size
from perdure.core.errors import DataDirectoryDamaged, DiskFull
from perdure.core.invariant import invariant
from perdure.storage.disk import Disk, DiskFullError

FOLDER = "metadata"


class LocalMetadata:
    """Registers below the folder ``metadata`` of the data directory."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._values: dict[str, Versioned] = {}
        self._hints: list[tuple[str, Callable[[str], None]]] = []
        self._failure: OSError | None = None
        disk.make_folder(FOLDER)
        for name in disk.list_folder(FOLDER):
            if not name.endswith(".tmp"):
                self._values[_key(name)] = self._read(name)

    async def get(self, key: str) -> Versioned | None:
        self._check_failure()
        return self._values.get(key)

    async def scan(self, prefix: str) -> dict[str, Versioned]:
        """All registers below ``prefix``."""
        self._check_failure()
        return {key: at for key, at in sorted(self._values.items()) if key.startswith(prefix)}

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        """As the port says.

        Raises:
            DiskFull: nothing was written.
            MetadataTooLarge: nothing was written.
            OSError: the disk failed, now or before.
        """
        self._check_failure()
        check_size(key, value)
        known = self._values.get(key)
        version = known.version if known is not None else None
        if version != expected:
            return Conflict(version)
        written = Versioned((version or 0) + 1, value)
        head = written.version.to_bytes(8, "little")
        crc = zlib.crc32(value, zlib.crc32(head)).to_bytes(4, "little")
        try:
            self._disk.replace(f"{FOLDER}/{_name(key)}", head + crc + value)
        except DiskFullError as error:
            raise DiskFull(f"no room for metadata key {key}: free some space") from error
        except OSError as error:
            self._failure = error
            raise
        self._values[key] = written
        for prefix, hint in list(self._hints):
            if key.startswith(prefix):
                hint(key)
        return written

    def watch(self, prefix: str, hint: Callable[[str], None]) -> Callable[[], None]:
        entry = (prefix, hint)
        self._hints.append(entry)

        def forget() -> None:
            if entry in self._hints:
                self._hints.remove(entry)

        return forget

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise OSError(f"metadata can't be trusted since: {self._failure}") from self._failure

    def _read(self, name: str) -> Versioned:
        content = self._disk.read_file(f"{FOLDER}/{name}")
        head, crc, value = content[:8], content[8:12], content[12:]
        if len(head + crc) < 12 or int.from_bytes(crc, "little") != zlib.crc32(
            value, zlib.crc32(head)
        ):
            raise DataDirectoryDamaged(
                f"{FOLDER}/{name} is damaged: restore the data directory from a backup"
            )
        return Versioned(int.from_bytes(head, "little"), value)


def _name(key: str) -> str:
    # Keys are made of our own words, with "/" between them.
    invariant("." not in key and key != "", "a metadata key", key=key)
    return key.replace("/", ".")


def _key(name: str) -> str:
    return name.replace(".", "/")
