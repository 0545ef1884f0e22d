"""Who this process is: the data directory's marker and what metadata says of it, brought together.

The generation grows by one at each start; it is written to the marker before it is published, so a
disk that was swapped, cloned or rolled back is noticed (cluster/core/identity.py).
"""

from dataclasses import dataclass

import msgspec

from perdure.cluster.core.identity import Published, Verdict, judge
from perdure.cluster.core.membership import (
    CLUSTER_FORMAT_VERSION,
    CLUSTER_KEY,
    ClusterMeta,
    NodeMeta,
    node_key,
)
from perdure.cluster.core.types import NodeId
from perdure.cluster.metadata.store import MetadataStore, Versioned
from perdure.core.entropy import Entropy
from perdure.core.errors import (
    DataDirectoryDamaged,
    DataDirectoryTooNew,
    MetadataConflict,
    MetadataRegressed,
)
from perdure.node.promotion import check_single
from perdure.storage.data_directory import (
    DIRECTORY_FORMAT_VERSION,
    Marker,
    check_owner,
    read_marker,
    write_marker,
)
from perdure.storage.disk import Disk

_SINGLE_NODE_ID = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """This process among all there ever were. ``fingerprint``, ``storage_uuid``: 16 bytes."""

    cluster: str
    fingerprint: bytes
    node: str
    node_id: int
    storage_uuid: bytes
    generation: int
    incarnation: int
    partition_count: int


async def establish(
    disk: Disk,
    metadata: MetadataStore,
    entropy: Entropy,
    names: tuple[str, str],
    partition_count: int,
) -> Identity:
    """Take the next generation in the (locked) data directory, provisioning it when it is new.

    ``names``: cluster and node. ``partition_count`` counts only at the first start.

    Raises:
        DataDirectoryForeign, DataDirectoryDamaged, DataDirectoryTooNew: it is not ours to serve.
        MetadataRegressed: metadata is older than the marker.
    """
    cluster_name, node_name = names
    marker, cluster = await _read(disk, metadata, names)
    key = node_key(NodeId(_SINGLE_NODE_ID))
    found = await metadata.get(key)
    known = msgspec.msgpack.decode(found.value, type=NodeMeta) if found is not None else None
    _check(marker, known)
    generation = (known.generation if known is not None else 0) + 1
    marker = Marker(
        format=DIRECTORY_FORMAT_VERSION,
        cluster=cluster_name,
        fingerprint=marker.fingerprint if marker is not None else _random_hex(entropy),
        node_id=_SINGLE_NODE_ID,
        node=node_name,
        storage_uuid=marker.storage_uuid if marker is not None else _random_hex(entropy),
        generation=generation,
    )
    write_marker(disk, marker)
    if cluster is None:
        cluster = ClusterMeta(
            CLUSTER_FORMAT_VERSION, cluster_name, marker.fingerprint, partition_count
        )
        await _put(metadata, CLUSTER_KEY, None, cluster)
    elif cluster.fingerprint != marker.fingerprint:
        raise DataDirectoryDamaged(
            f"marker and metadata are of different clusters: {marker.fingerprint} and "
            f"{cluster.fingerprint}; restore the one that doesn't belong"
        )
    incarnation = entropy.bits(64)
    node = NodeMeta(node_name, generation, incarnation, marker.storage_uuid)
    await _put(metadata, key, found.version if found is not None else None, node)
    return Identity(
        cluster=cluster_name,
        fingerprint=bytes.fromhex(marker.fingerprint),
        node=node_name,
        node_id=_SINGLE_NODE_ID,
        storage_uuid=bytes.fromhex(marker.storage_uuid),
        generation=generation,
        incarnation=incarnation,
        partition_count=cluster.partition_count,
    )


async def _read(
    disk: Disk, metadata: MetadataStore, names: tuple[str, str]
) -> tuple[Marker | None, ClusterMeta | None]:
    check_single(disk)
    marker = read_marker(disk)
    if marker is not None:
        check_owner(marker, *names)
    cluster = await _read_cluster(metadata)
    if cluster is None and marker is not None and disk.exists("wal"):
        raise DataDirectoryDamaged(
            "there is a log here but no metadata of its cluster: restore the folder metadata/ "
            "from a backup, or wipe the data directory"
        )
    return marker, cluster


async def _read_cluster(metadata: MetadataStore) -> ClusterMeta | None:
    found = await metadata.get(CLUSTER_KEY)
    if found is None:
        return None
    cluster = msgspec.msgpack.decode(found.value, type=ClusterMeta)
    if cluster.format > CLUSTER_FORMAT_VERSION:
        raise DataDirectoryTooNew(
            f"the cluster has format {cluster.format}, this release reads up to "
            f"{CLUSTER_FORMAT_VERSION}: start the release that wrote it, or a later one"
        )
    return cluster


def _check(marker: Marker | None, known: NodeMeta | None) -> None:
    published = None
    if known is not None:
        published = Published(generation=known.generation, was_writable=True)
    match judge(marker.generation if marker is not None else None, published):
        case Verdict.JOIN | Verdict.START:
            return
        case Verdict.DATA_LOSS:
            at = f"generation {marker.generation}" if marker is not None else "no marker"
            raise DataDirectoryDamaged(
                f"the data directory has {at}, but generation "
                f"{known.generation if known is not None else 0} has run: the disk was swapped, "
                "cloned or rolled back; restore the newest data directory, or wipe it"
            )
        case Verdict.METADATA_REGRESSED:
            assert marker is not None
            raise MetadataRegressed(
                f"the data directory has run as generation {marker.generation}, metadata knows "
                f"{known.generation if known is not None else 0}: restore the folder metadata/"
            )


async def _put(
    metadata: MetadataStore, key: str, expected: int | None, value: ClusterMeta | NodeMeta
) -> None:
    outcome = await metadata.cas(key, expected, msgspec.msgpack.encode(value))
    if not isinstance(outcome, Versioned):
        raise MetadataConflict(f"metadata key {key} changed while this node wrote it: {outcome}")


def _random_hex(entropy: Entropy) -> str:
    return f"{entropy.bits(128):032x}"
