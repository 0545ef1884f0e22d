"""Snapshots in an object store, one blocking call at a time: write, read, check, list, put back.

Who calls in which order, and what happens when others do the same, is decided elsewhere
(cluster/core/snapshot.py); here is what a single step does. Nothing is believed that was not
checked: documents name the checksum of what they name, and carry whose they are (I-23).
"""

import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from perdure.core.errors import SnapshotDamaged, SnapshotForeign
from perdure.core.failpoint import failpoint
from perdure.core.invariant import invariant
from perdure.core.limits_snapshots import (
    SNAPSHOT_CHUNK_BYTES_MAX,
    SNAPSHOT_CHUNK_BYTES_MIN,
    SNAPSHOT_CHUNKS_WANTED,
)
from perdure.core.telemetry import logger
from perdure.storage.object_store import ABSENT, ConditionFailed, ListedObject, ObjectStore
from perdure.storage.partition_store import STORE_FORMAT_VERSION, Meta
from perdure.storage.snapshot_format import (
    CLUSTER_KEY,
    SETS_PREFIX,
    Chunk,
    ClusterDocument,
    Latest,
    Manifest,
    Retained,
    SnapshotSet,
    check_owner,
    chunk_key,
    decode,
    encode,
    latest_key,
    manifest_key,
    set_key,
    sha256,
    snapshot_prefix,
    snapshots_prefix,
)
from perdure.storage.table_images import TableImage, install_tables

log = logger("snapshots")

_COMPRESSION_LEVEL = 1
_SAVED_SHARE_MIN = 0.1
# Transfers wait beside each other; what costs a processor is done one after the other, so that a
# snapshot never takes more than one from the node.
_compressing = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOwner:
    """Who takes snapshots. ``fingerprint``: 32 hex digits."""

    fingerprint: str
    cluster: str
    partition_count: int
    software: str


# --- Writing --------------------------------------------------------------------------------------


def claim_prefix(store: ObjectStore, owner: SnapshotOwner) -> None:
    """Make the prefix this cluster's, unless it is already.

    Raises:
        SnapshotForeign: it is another cluster's.
    """
    document = ClusterDocument(fingerprint=owner.fingerprint, name=owner.cluster)
    found = store.get(CLUSTER_KEY)
    if found is None:
        try:
            store.put(CLUSTER_KEY, encode(document), ABSENT)
            return
        except ConditionFailed:
            found = store.get(CLUSTER_KEY)
            if found is None:
                raise SnapshotDamaged(f"{CLUSTER_KEY} is there and can't be read") from None
    check_owner(decode(found.content, ClusterDocument, CLUSTER_KEY), owner.fingerprint, CLUSTER_KEY)


def chunk_ranges(size: int) -> list[tuple[int, int]]:
    """Offset and size of each chunk of an image."""
    length = max(SNAPSHOT_CHUNK_BYTES_MIN, -(-size // SNAPSHOT_CHUNKS_WANTED))
    length = min(length, SNAPSHOT_CHUNK_BYTES_MAX)
    return [(start, min(length, size - start)) for start in range(0, size, length)]


def put_chunk(store: ObjectStore, key: str, image: TableImage, place: tuple[int, int]) -> Chunk:
    """Write one chunk of an image."""
    offset, size = place
    content = image.read(size, offset)
    invariant(len(content) == size, "an image doesn't shrink", key=key, read=len(content))
    with _compressing:
        stored, encoding = zlib.compress(content, _COMPRESSION_LEVEL), "zlib"
        if len(stored) > size * (1 - _SAVED_SHARE_MIN):
            stored, encoding = content, "none"
        checksum = sha256(stored)
    store.put(key, stored)
    failpoint("snapshot.chunk.written")
    return Chunk(size, len(stored), checksum, encoding)


def make_manifest(
    image: TableImage, chunks: tuple[Chunk, ...], owner: SnapshotOwner, id: str, now_ms: int
) -> Manifest:
    """What the chunks are, by what the image says of itself."""
    meta = image.meta
    invariant(
        meta.fingerprint.hex() == owner.fingerprint,
        "tables are of the cluster they are taken in",
        tables=meta.fingerprint.hex(),
        cluster=owner.fingerprint,
    )
    return Manifest(
        fingerprint=owner.fingerprint,
        id=id,
        cluster=owner.cluster,
        partition=meta.partition,
        partition_count=owner.partition_count,
        lsn=meta.applied_lsn,
        epoch=meta.applied_epoch,
        created_ms=now_ms,
        software=owner.software,
        tables_format=meta.format,
        size=image.size,
        chunks=chunks,
    )


def put_manifest(store: ObjectStore, manifest: Manifest) -> Retained:
    """Write the manifest and read it back: from here on the snapshot is whole.

    Raises:
        SnapshotDamaged: the store gives back something else.
    """
    key = manifest_key(manifest.partition, manifest.lsn, manifest.id)
    content = encode(manifest)
    with suppress(ConditionFailed):  # ours, of a try whose answer was lost; or we see it below
        store.put(key, content, ABSENT)
    failpoint("snapshot.manifest.written")
    found = store.get(key)
    if found is None or found.content != content:
        raise SnapshotDamaged(f"{key} doesn't come back as it was written")
    return retained_of(manifest, content)


def retained_of(manifest: Manifest, content: bytes) -> Retained:
    """A snapshot as ``latest.json`` names it."""
    return Retained(
        id=manifest.id,
        lsn=manifest.lsn,
        epoch=manifest.epoch,
        created_ms=manifest.created_ms,
        size=sum(chunk.stored_size for chunk in manifest.chunks),
        manifest_sha256=sha256(content),
    )


def put_set(store: ObjectStore, document: SnapshotSet) -> None:
    """Write a set; repeating it changes nothing."""
    with suppress(ConditionFailed):
        store.put(set_key(document.name), encode(document), ABSENT)


def delete_snapshot(store: ObjectStore, partition: int, lsn: int, id: str) -> None:
    """Remove everything of a snapshot, its manifest first: what is left of it is no snapshot."""
    store.delete(manifest_key(partition, lsn, id))
    failpoint("snapshot.manifest.deleted")
    for item in list(store.list(snapshot_prefix(partition, lsn, id))):
        store.delete(item.key)


# --- Reading --------------------------------------------------------------------------------------


def read_owner(store: ObjectStore) -> ClusterDocument | None:
    """Whose prefix it is."""
    found = store.get(CLUSTER_KEY)
    return decode(found.content, ClusterDocument, CLUSTER_KEY) if found is not None else None


def decode_latest(content: bytes, partition: int, fingerprint: str) -> Latest:
    """A partition's ``latest.json``.

    Raises:
        SnapshotDamaged, SnapshotForeign: it isn't.
    """
    key = latest_key(partition)
    latest = decode(content, Latest, key)
    check_owner(latest, fingerprint, key)
    lsns = [item.lsn for item in latest.retained]
    if latest.partition != partition or lsns != sorted(lsns, reverse=True):
        raise SnapshotDamaged(f"{key} contradicts itself")
    return latest


def read_latest(store: ObjectStore, partition: int, fingerprint: str) -> Latest | None:
    """The snapshots of a partition that count; None: there are none."""
    found = store.get(latest_key(partition))
    return None if found is None else decode_latest(found.content, partition, fingerprint)


def read_manifest(
    store: ObjectStore, partition: int, retained: Retained, fingerprint: str
) -> Manifest:
    """A snapshot's manifest.

    Raises:
        SnapshotDamaged, SnapshotForeign: it isn't there, or isn't what it should be.
    """
    key = manifest_key(partition, retained.lsn, retained.id)
    found = store.get(key)
    if found is None:
        raise SnapshotDamaged(f"{key} is named and isn't there")
    if sha256(found.content) != retained.manifest_sha256:
        raise SnapshotDamaged(f"{key} has another checksum than it was published with")
    manifest = decode(found.content, Manifest, key)
    check_owner(manifest, fingerprint, key)
    claimed = (manifest.partition, manifest.lsn, manifest.id)
    if claimed != (partition, retained.lsn, retained.id):
        raise SnapshotForeign(f"{key} is the manifest of another snapshot")
    if manifest.size != sum(chunk.size for chunk in manifest.chunks):
        raise SnapshotDamaged(f"{key} contradicts itself")
    return manifest


def get_chunk(store: ObjectStore, manifest: Manifest, number: int) -> bytes:
    """The bytes of one chunk.

    Raises:
        SnapshotDamaged: they are not what they were.
    """
    key = chunk_key(manifest.partition, manifest.lsn, manifest.id, number)
    chunk = manifest.chunks[number]
    found = store.get(key)
    if found is None:
        raise SnapshotDamaged(f"{key} is missing")
    if len(found.content) != chunk.stored_size or sha256(found.content) != chunk.sha256:
        raise SnapshotDamaged(f"{key} has another checksum than it was written with")
    content = found.content
    try:
        if chunk.encoding == "zlib":
            decoder = zlib.decompressobj()
            content = decoder.decompress(content, chunk.size)
        elif chunk.encoding != "none":
            raise SnapshotForeign(f"{key} is encoded as {chunk.encoding}: by a later release")
    except zlib.error as error:
        raise SnapshotDamaged(f"{key} can't be decompressed: {error}") from error
    if len(content) != chunk.size:
        raise SnapshotDamaged(f"{key} has another size than it was written with")
    return content


def get_image(store: ObjectStore, manifest: Manifest) -> Iterator[bytes]:
    """The image of a snapshot, chunk by chunk, each checked."""
    for number in range(len(manifest.chunks)):
        yield get_chunk(store, manifest, number)


def install_snapshot(
    store: ObjectStore, partition: int, retained: Retained, fingerprint: str, folder: Path
) -> Meta:
    """Put a snapshot's tables into ``folder``, which must not exist; durable on return.

    Raises:
        SnapshotDamaged, SnapshotForeign: it can't be used; there is no folder then.
    """
    manifest = read_usable_manifest(store, partition, retained, fingerprint)
    return install_tables(
        get_image(store, manifest), folder, lambda meta: check_tables(manifest, meta)
    )


def read_usable_manifest(
    store: ObjectStore, partition: int, retained: Retained, fingerprint: str
) -> Manifest:
    """A snapshot's manifest, if this release can use its tables.

    Raises:
        SnapshotDamaged, SnapshotForeign: it can't.
    """
    manifest = read_manifest(store, partition, retained, fingerprint)
    if manifest.tables_format != STORE_FORMAT_VERSION:
        raise SnapshotForeign(
            f"the snapshot of partition {partition} has tables of format {manifest.tables_format}, "
            f"this release reads {STORE_FORMAT_VERSION}: use the release that took it "
            f"({manifest.software})"
        )
    return manifest


def check_tables(manifest: Manifest, meta: Meta) -> None:
    """Refuse tables that are not those of the manifest.

    Raises:
        SnapshotDamaged: with what they are.
    """
    found = (meta.fingerprint.hex(), meta.partition, meta.applied_lsn, meta.applied_epoch)
    wanted = (manifest.fingerprint, manifest.partition, manifest.lsn, manifest.epoch)
    if found != wanted:
        raise SnapshotDamaged(
            f"the tables of partition {manifest.partition} are those of partition "
            f"{meta.partition} at {meta.applied_lsn}, not at {manifest.lsn} as the manifest says"
        )


# --- Sets -----------------------------------------------------------------------------------------


def read_set(store: ObjectStore, name: str, fingerprint: str) -> SnapshotSet | None:
    """The set of this name.

    Raises:
        SnapshotDamaged, SnapshotForeign: it can't be read.
    """
    key = set_key(name)
    found = store.get(key)
    if found is None:
        return None
    document = decode(found.content, SnapshotSet, key)
    check_owner(document, fingerprint, key)
    return document


def list_sets(store: ObjectStore, fingerprint: str) -> Iterator[SnapshotSet]:
    """The sets that can be read, newest first; a store that lags may not show the latest."""
    for item in reversed(list(store.list(SETS_PREFIX))):
        name = item.key.removeprefix(SETS_PREFIX).removesuffix(".json")
        try:
            document = read_set(store, name, fingerprint)
        except SnapshotDamaged as error:
            log.error("snapshots.set.damaged", set=name, reason=str(error))
            continue
        if document is not None:
            yield document


def list_snapshot_objects(store: ObjectStore, partition: int) -> list[ListedObject]:
    """Everything that snapshots of a partition are made of, orphans included."""
    return list(store.list(snapshots_prefix(partition)))
