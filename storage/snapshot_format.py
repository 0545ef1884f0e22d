"""What lies in the object store, and under which keys. Pure.

```
cluster.json                                whose prefix this is; written once
p/<partition>/latest.json                   the snapshots that count; replaced by compare-and-set
p/<partition>/s/<lsn>-<id>/manifest.json    what a snapshot is made of; written once, last
p/<partition>/s/<lsn>-<id>/data.<k>         its chunks; written once
sets/<time>-<id>.json                       one snapshot of every partition, all of one moment
```

Documents are JSON; unknown fields are skipped, so that fields can be added. Numbers in keys have
leading zeros: their order is that of the numbers.
"""

import hashlib
from typing import TypeVar

import msgspec

from perdure.core.errors import SnapshotDamaged, SnapshotForeign

SNAPSHOT_FORMAT_VERSION = 1
CLUSTER_KEY = "cluster.json"
SETS_PREFIX = "sets/"

D = TypeVar("D", bound="Document")


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What every document has. ``fingerprint``: of the cluster, 32 hex digits (I-23)."""

    format: int = SNAPSHOT_FORMAT_VERSION
    fingerprint: str


class ClusterDocument(Document, frozen=True, kw_only=True):
    """Whose prefix this is."""

    name: str


class Chunk(msgspec.Struct, frozen=True):
    """A piece of the tables' file. ``sha256`` and ``stored_size``: of the object as it is stored;
    ``encoding``: ``zlib``, or ``none``."""

    size: int
    stored_size: int
    sha256: str
    encoding: str


class Manifest(Document, frozen=True, kw_only=True):
    """A snapshot: the tables of a partition with every record up to ``lsn`` applied, and no other.

    ``tables_format``: of the rows; ``size``: of the tables' file, which is all chunks in order.
    """

    id: str
    cluster: str
    partition: int
    partition_count: int
    lsn: int
    epoch: int
    created_ms: int
    software: str
    tables_format: int
    size: int
    chunks: tuple[Chunk, ...]


class Retained(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot as ``latest.json`` names it. ``size``: stored bytes of all chunks."""

    id: str
    lsn: int
    epoch: int
    created_ms: int
    size: int
    manifest_sha256: str


class Latest(Document, frozen=True, kw_only=True):
    """The snapshots of a partition that count, newest first. ``version`` grows by one."""

    partition: int
    version: int
    retained: tuple[Retained, ...]

    @property
    def newest_lsn(self) -> int:
        return self.retained[0].lsn if self.retained else 0

    @property
    def archived_lsn(self) -> int:
        """Any retained snapshot brings a replica at least here (oldest retained)."""
        return self.retained[-1].lsn if self.retained else 0


class SetMember(msgspec.Struct, frozen=True):
    """A partition's snapshot in a set."""

    partition: int
    snapshot: Retained


class SnapshotSet(Document, frozen=True, kw_only=True):
    """Snapshots of all partitions at one moment, with what was registered: a node's backup."""

    id: str
    cluster: str
    created_ms: int
    software: str
    members: tuple[SetMember, ...]
    registry: bytes

    @property
    def name(self) -> str:
        """What operators call it by."""
        return f"{self.created_ms:015d}-{self.id}"


def encode(document: Document) -> bytes:
    """A document as it is stored."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2)


def decode(content: bytes, kind: type[D], key: str) -> D:
    """A document as it was stored under ``key``.

    Raises:
        SnapshotForeign: a later release wrote it.
        SnapshotDamaged: it can't be read.
    """
    try:
        version = msgspec.json.decode(content, type=Document).format
        if version <= SNAPSHOT_FORMAT_VERSION:
            return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotDamaged(f"{key} can't be read: {error}") from error
    raise SnapshotForeign(
        f"{key} has format {version}, this release reads up to {SNAPSHOT_FORMAT_VERSION}: use the "
        "release that wrote it, or a later one"
    )


def check_owner(document: Document, fingerprint: str, key: str) -> None:
    """Refuse what is another cluster's (I-23).

    Raises:
        SnapshotForeign: with both fingerprints.
    """
    if document.fingerprint != fingerprint:
        raise SnapshotForeign(
            f"{key} is of the cluster with fingerprint {document.fingerprint}, this one has "
            f"{fingerprint}: give each cluster a destination of its own"
        )


def sha256(content: bytes) -> str:
    """A checksum as documents hold it."""
    return hashlib.sha256(content).hexdigest()


# --- Keys -----------------------------------------------------------------------------------------


def latest_key(partition: int) -> str:
    """Of ``latest.json``."""
    return f"p/{partition}/latest.json"


def snapshots_prefix(partition: int) -> str:
    """Of everything that snapshots of a partition are made of."""
    return f"p/{partition}/s/"


def snapshot_prefix(partition: int, lsn: int, id: str) -> str:
    """Of everything that one snapshot is made of."""
    return f"{snapshots_prefix(partition)}{lsn:020d}-{id}/"


def manifest_key(partition: int, lsn: int, id: str) -> str:
    """Of a snapshot's manifest."""
    return snapshot_prefix(partition, lsn, id) + "manifest.json"


def chunk_key(partition: int, lsn: int, id: str, number: int) -> str:
    """Of a snapshot's chunk, counted from 0."""
    return f"{snapshot_prefix(partition, lsn, id)}data.{number:05d}"


def set_key(name: str) -> str:
    """Of a set."""
    return f"{SETS_PREFIX}{name}.json"


def parse_snapshot_key(key: str) -> tuple[int, str] | None:
    """LSN and id of the snapshot that an object of ``snapshots_prefix`` belongs to."""
    parts = key.split("/")
    if len(parts) != 5 or parts[0] != "p" or parts[2] != "s":
        return None
    lsn, dash, id = parts[3].partition("-")
    return (int(lsn), id) if dash and lsn.isascii() and lsn.isdigit() and id else None
