"""Metadata of a single node: one file per register, replaced atomically.

Safe because the data directory is locked: this process is the only writer. A register's file is
its version (u64), the CRC of version and value (u32), and the value.
"""

import zlib
from collections.abc import Callable

from perdure.cluster.metadata.store import CasOutcome, Conflict, Versioned
from perdure.core.errors import DataDirectoryDamaged
from perdure.storage.disk import Disk

FOLDER = "metadata"


class LocalMetadata:
    """Registers below the folder ``metadata`` of the data directory."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._values: dict[str, Versioned] = {}
        self._hints: list[tuple[str, Callable[[str], None]]] = []
        disk.make_folder(FOLDER)
        for name in disk.list_folder(FOLDER):
            if not name.endswith(".tmp"):
                self._values[_key(name)] = self._read(name)

    async def get(self, key: str) -> Versioned | None:
        return self._values.get(key)

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        known = self._values.get(key)
        version = known.version if known is not None else None
        if version != expected:
            return Conflict(version)
        written = Versioned((version or 0) + 1, value)
        head = written.version.to_bytes(8, "little")
        crc = zlib.crc32(value, zlib.crc32(head)).to_bytes(4, "little")
        self._disk.replace(f"{FOLDER}/{_name(key)}", head + crc + value)
        self._values[key] = written
        for prefix, hint in list(self._hints):
            if key.startswith(prefix):
                hint(key)
        return written

    def watch(self, prefix: str, hint: Callable[[str], None]) -> Callable[[], None]:
        entry = (prefix, hint)
        self._hints.append(entry)
        return lambda: self._hints.remove(entry)

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
    return key.replace("/", ".")


def _key(name: str) -> str:
    return name.replace(".", "/")
