"""A node's data directory out of a set of snapshots: what is left when a disk is gone.

What comes of it is a new cluster with the old one's state: its own fingerprint, its own log, which
begins behind what the snapshots hold. So whatever is left of the old one, running or not, can't be
taken for it, nor it for the old one; and its snapshots need a destination of their own.
"""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from perdure.cluster.core import chain
from perdure.cluster.core.membership import CLUSTER_FORMAT_VERSION, CLUSTER_KEY, ClusterMeta
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.takeover import partition_key
from perdure.core.entropy import Entropy
from perdure.core.errors import DataDirectoryForeign, SnapshotDamaged, SnapshotNotFound
from perdure.core.failpoint import failpoint
from perdure.core.invariant import invariant
from perdure.core.limits import LMDB_MAP_BYTES_INITIAL
from perdure.node.registry import store as registry_store
from perdure.storage.data_directory import (
    DIRECTORY_FORMAT_VERSION,
    PARTITIONS_FOLDER,
    Marker,
    lock_folder,
    open_disk,
    write_marker,
)
from perdure.storage.disk import sync_path
from perdure.storage.env import LmdbEnv
from perdure.storage.object_store import ObjectStore
from perdure.storage.partition_store import META_KEY, Meta
from perdure.storage.snapshot_format import SetMember, SnapshotSet
from perdure.storage.snapshots import (
    get_image,
    install_snapshot,
    list_sets,
    read_manifest,
    read_owner,
    read_set,
)

_NODE_ID = 1
_LOCK = "LOCK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whose data directory it will be; ``folder`` must be empty or not exist."""

    folder: Path
    cluster: str
    node: str


def find_set(store: ObjectStore, name: str | None) -> SnapshotSet:
    """The set of this name, or the newest.

    Raises:
        SnapshotNotFound: there is none.
        SnapshotDamaged, SnapshotForeign: what is there can't be read.
    """
    owner = read_owner(store)
    if owner is None:
        raise SnapshotNotFound("nothing was ever put here: is the destination right?")
    if name is None:
        for document in list_sets(store, owner.fingerprint):
            return document
        raise SnapshotNotFound("there is no set of snapshots yet: no first one was completed")
    named = read_set(store, name, owner.fingerprint)
    if named is None:
        names = [document.name for document in list_sets(store, owner.fingerprint)]
        raise SnapshotNotFound(f"there is no set {name}; there are {', '.join(names) or 'none'}")
    return named


def check_members(document: SnapshotSet) -> None:
    """Refuse a set that is not one of all partitions.

    Raises:
        SnapshotDamaged: it isn't.
    """
    partitions = [member.partition for member in document.members]
    if not partitions or partitions != list(range(len(partitions))):
        raise SnapshotDamaged(f"the set {document.name} lacks partitions: it has {partitions}")


def verify_set(
    store: ObjectStore, document: SnapshotSet, progress: Callable[[SetMember], None]
) -> None:
    """Read every byte of a set and check it.

    Raises:
        SnapshotDamaged, SnapshotForeign: it can't be restored.
    """
    check_members(document)
    for member in document.members:
        manifest = read_manifest(store, member.partition, member.snapshot, document.fingerprint)
        for _ in get_image(store, manifest):
            pass  # reading checks
        progress(member)


def restore(
    store: ObjectStore,
    document: SnapshotSet,
    target: Target,
    entropy: Entropy,
    progress: Callable[[SetMember], None],
) -> None:
    """Make the data directory; it is there whole, or not at all.

    Raises:
        DataDirectoryForeign: there is one already.
        DataDirectoryLocked: another process is at it.
        SnapshotDamaged, SnapshotForeign: the set can't be restored.
    """
    check_members(document)
    folder = target.folder.absolute()
    if folder.exists() and any(path.name != _LOCK for path in folder.iterdir()):
        raise DataDirectoryForeign(
            f"there is data in {folder}: a restored node needs an empty directory; move it away, "
            "or choose another --base-dir or --node-name"
        )
    partial = folder.with_name(folder.name + ".restoring")
    lock = lock_folder(partial)
    try:
        for path in partial.iterdir():  # of a restore that was interrupted
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
        fingerprint = f"{entropy.bits(128):032x}"
        for member in document.members:
            _restore_partition(store, document, member, partial, bytes.fromhex(fingerprint))
            failpoint("restore.partition.done")
            progress(member)
        asyncio.run(_write_registers(document, target, partial, fingerprint))
        _write_marker(target, partial, fingerprint, f"{entropy.bits(128):032x}")
        failpoint("restore.ready")
        if folder.exists():
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()
        partial.rename(folder)
        sync_path(folder.parent)
    finally:
        lock.release()


def _restore_partition(
    store: ObjectStore, document: SnapshotSet, member: SetMember, partial: Path, fingerprint: bytes
) -> None:
    folder = partial / PARTITIONS_FOLDER / str(member.partition)
    meta = install_snapshot(store, member.partition, member.snapshot, document.fingerprint, folder)
    env = LmdbEnv(folder, LMDB_MAP_BYTES_INITIAL)
    try:
        ours: Meta = msgspec.structs.replace(meta, fingerprint=fingerprint)
        env.commit([], [], [(META_KEY, msgspec.msgpack.encode(ours))])
    finally:
        env.close()


async def _write_registers(
    document: SnapshotSet, target: Target, partial: Path, fingerprint: str
) -> None:
    """What metadata has to say: the cluster, what is registered, logs that begin behind tables."""
    metadata = LocalMetadata(open_disk(partial))
    cluster = ClusterMeta(
        CLUSTER_FORMAT_VERSION, target.cluster, fingerprint, len(document.members)
    )
    values = {
        CLUSTER_KEY: msgspec.msgpack.encode(cluster),
        registry_store.KEY: document.registry,
    }
    for member in document.members:
        begun = msgspec.structs.replace(
            chain.empty(), epoch=member.snapshot.epoch, trim_lsn=member.snapshot.lsn + 1
        )
        values[partition_key(member.partition)] = msgspec.msgpack.encode(begun)
    for key, value in values.items():
        outcome = await metadata.cas(key, None, value)
        invariant(isinstance(outcome, Versioned), "a new directory has no registers", key=key)


def _write_marker(target: Target, partial: Path, fingerprint: str, storage_uuid: str) -> None:
    marker = Marker(
        format=DIRECTORY_FORMAT_VERSION,
        cluster=target.cluster,
        fingerprint=fingerprint,
        node_id=_NODE_ID,
        node=target.node,
        storage_uuid=storage_uuid,
        generation=0,
    )
    write_marker(open_disk(partial), marker)
