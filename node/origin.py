"""What a cluster was made of: a set of another cluster's snapshots, or of a single node's.

A cluster that is formed with ``cluster.restore-from`` has the state of a set, and nothing else of
the one that took it: its own fingerprint, so that what is left of the old one can't be taken for
it, and logs that begin behind what the snapshots hold. All its registers are put there in one
entry, the set among them. Replicas then find that their logs begin later than their (empty) tables
end, and get tables from the set, each its own: nobody has to hold everything at any time.
"""

import msgspec

from perdure.cluster.core import chain
from perdure.cluster.core.membership import CLUSTER_KEY, ClusterMeta
from perdure.cluster.metadata.store import MetadataStore, Versioned
from perdure.cluster.takeover import partition_key
from perdure.core.errors import InvalidConfiguration
from perdure.node.registry import store as registry_store
from perdure.node.restore import check_members, find_set
from perdure.storage.object_store import ObjectStore
from perdure.storage.snapshot_format import SnapshotSet

KEY = "origin"


class Origin(msgspec.Struct, frozen=True):
    """Value of the register ``origin``. ``document``: without what was registered."""

    destination: str
    document: SnapshotSet


async def read_origin(metadata: MetadataStore) -> Origin | None:
    """What the cluster was made of; None: of nothing."""
    found = await metadata.get(KEY)
    return msgspec.msgpack.decode(found.value, type=Origin) if found is not None else None


def find_document(store: ObjectStore, name: str | None) -> SnapshotSet:
    """The set of this name, or the newest, if a cluster can be made of it; blocks.

    Raises:
        SnapshotNotFound: there is none.
        SnapshotDamaged, SnapshotForeign: what is there can't be used.
    """
    document = find_set(store, name)
    check_members(document)
    return document


def check_destinations(restore_from: str, destination: str | None) -> None:
    """Refuse to take snapshots to where those of the old cluster are.

    Raises:
        InvalidConfiguration: so it is set.
    """
    if restore_from == destination:
        raise InvalidConfiguration(
            "snapshots.destination and cluster.restore-from are the same place: what is made of a "
            "set is a new cluster, whose snapshots need a destination of their own"
        )


def restored_registers(
    destination: str, document: SnapshotSet, wanted: ClusterMeta
) -> dict[str, Versioned]:
    """The registers of a cluster with the state of a set; ``wanted`` but for its partitions."""
    bare: SnapshotSet = msgspec.structs.replace(document, registry=b"")
    cluster: ClusterMeta = msgspec.structs.replace(wanted, partition_count=len(document.members))
    values = {
        CLUSTER_KEY: msgspec.msgpack.encode(cluster),
        KEY: msgspec.msgpack.encode(Origin(destination, bare)),
        registry_store.KEY: document.registry,
    }
    for member in document.members:
        begun = msgspec.structs.replace(
            chain.empty(), epoch=member.snapshot.epoch, trim_lsn=member.snapshot.lsn + 1
        )
        values[partition_key(member.partition)] = msgspec.msgpack.encode(begun)
    return {key: Versioned(1, value) for key, value in values.items()}
