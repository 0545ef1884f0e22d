"""A node's data directory: whose it is, and that only one process has it.

Below ``<base>/<node name>``: ``LOCK``, ``MARKER`` (identity, JSON), ``wal/``, ``metadata/``,
``partitions/<id>/``. The marker is replaced atomically and durably.
"""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from perdure.core.errors import (
    DataDirectoryDamaged,
    DataDirectoryForeign,
    DataDirectoryLocked,
    DataDirectoryTooNew,
    DiskFull,
)
from perdure.storage.disk import Disk, DiskFullError, FolderLock, OsDisk, make_durable_folder

DIRECTORY_FORMAT_VERSION = 1
MARKER = "MARKER"
PARTITIONS_FOLDER = "partitions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """Identity of a data directory. ``fingerprint`` and ``storage_uuid`` are hex of 16 bytes."""

    format: int
    cluster: str
    fingerprint: str
    node_id: int
    node: str
    storage_uuid: str
    generation: int


def lock_folder(root: Path) -> FolderLock:
    """Make the folder if needed and lock it for this process.

    Raises:
        DataDirectoryLocked: another process has it.
    """
    make_durable_folder(root.absolute())
    lock = FolderLock(root)
    if not lock.try_acquire():
        holder = lock.holder()
        lock.release()
        raise DataDirectoryLocked(
            f"{root} is in use by process {holder or 'unknown'}: stop it, or choose another "
            "--base-dir or --node-name"
        )
    return lock


def open_disk(root: Path) -> OsDisk:
    """The real disk below a data directory."""
    return OsDisk(root)


def read_marker(disk: Disk) -> Marker | None:
    """The marker, or None in a directory that was never used.

    Raises:
        DataDirectoryTooNew: a later release wrote it.
        DataDirectoryDamaged: it can't be read, or data lies here without one.
    """
    if not disk.exists(MARKER):
        if any(disk.exists(folder) for folder in ("wal", PARTITIONS_FOLDER)):
            raise DataDirectoryDamaged(
                f"there is data here but no {MARKER}: restore the file, or wipe the directory"
            )
        return None
    try:
        document = json.loads(disk.read_file(MARKER))
        version = document["format"]
        if isinstance(version, int) and version > DIRECTORY_FORMAT_VERSION:
            raise DataDirectoryTooNew(
                f"the data directory has format {version}, this release reads up to "
                f"{DIRECTORY_FORMAT_VERSION}: start the release that wrote it, or a later one"
            )
        checksum = document.pop("checksum")
        marker = Marker(**document)
    except (ValueError, KeyError, TypeError) as error:
        raise DataDirectoryDamaged(f"{MARKER} can't be read: {error}") from error
    if checksum != _checksum(marker):
        raise DataDirectoryDamaged(f"{MARKER} was changed by hand or damaged")
    return marker


def write_marker(disk: Disk, marker: Marker) -> None:
    """Replace the marker.

    Raises:
        DiskFull: no room; the old marker stands.
    """
    document = {**asdict(marker), "checksum": _checksum(marker)}
    try:
        disk.replace(MARKER, json.dumps(document, indent=2).encode() + b"\n")
    except DiskFullError as error:
        raise DiskFull(f"no room for the file {MARKER}: free some space") from error


def check_owner(marker: Marker, cluster: str, node: str) -> None:
    """Refuse a directory of another cluster or node.

    Raises:
        DataDirectoryForeign: with both names.
    """
    if (marker.cluster, marker.node) != (cluster, node):
        raise DataDirectoryForeign(
            f"the data directory belongs to node {marker.node!r} of cluster {marker.cluster!r}, "
            f"this process is node {node!r} of cluster {cluster!r}: choose another --base-dir"
        )


def _checksum(marker: Marker) -> str:
    text = json.dumps(asdict(marker), sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"
