"""From a single node to the first node of a cluster: a note in its data directory, then a start.

1. ``promote``, while the node is stopped, writes the note. It names the storages of the metadata
   members, and how far each partition's tables are; from then on the directory is a cluster's.
2. The next start (``formation``) gives the other members their storage, brings up the quorum, and
   puts the node's registers there in one entry, before anything else. Repeated until it is done.

Nothing else of the directory changes: node id, fingerprint, tables and log stay what they are. Old
segments stay in the chains, stored once, until all replicas have in their tables what they hold.
Who dies anywhere leaves a single node or a cluster: the note is one file, the registers one entry.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.membership import CLUSTER_KEY, ClusterMeta
from perdure.cluster.membership import PARTITIONS_PREFIX
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.metadata.provision import draw_storages, read_identity
from perdure.cluster.metadata.server import FOLDER as MEMBER_FOLDER
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.takeover import partition_key
from perdure.core.entropy import Entropy
from perdure.core.errors import (
    DataDirectoryDamaged,
    DataDirectoryForeign,
    InvalidConfiguration,
)
from perdure.core.failpoint import failpoint
from perdure.core.ids import PartitionId
from perdure.node.config.model import Config
from perdure.node.quorum import NOTE as QUORUM_NOTE
from perdure.storage.data_directory import (
    PARTITIONS_FOLDER,
    check_owner,
    lock_folder,
    open_disk,
    read_marker,
)
from perdure.storage.disk import Disk, OsDisk
from perdure.storage.env import LmdbEnv
from perdure.storage.partition_store import PartitionStore

NOTE = "formation"
_REGISTER = "metadata/cluster"


class Promoted(msgspec.Struct, frozen=True):
    """What a single node brings. ``begins``: where each partition's log begins for others, who get
    the tables of what is before; copies as in ``ClusterMeta``."""

    begins: dict[int, int]
    replication: int
    partition_replicas: int


class Intent(msgspec.Struct, frozen=True):
    """What the first metadata member is to make: the cluster's fingerprint, a storage for each."""

    cluster: str
    storages: dict[int, str]
    promoted: Promoted | None = None


def read_note(disk: Disk) -> Intent | None:
    """The first member's note; None: it has none."""
    if not disk.exists(NOTE):
        return None
    return msgspec.json.decode(disk.read_file(NOTE), type=Intent)


def write_note(disk: Disk, intent: Intent) -> None:
    disk.replace(NOTE, msgspec.json.encode(intent))


def check_single(disk: Disk) -> None:
    """Refuse to run a single node on a directory that is a cluster's.

    Raises:
        DataDirectoryForeign: it is.
    """
    if disk.exists(MEMBER_FOLDER) or disk.exists(QUORUM_NOTE):
        raise DataDirectoryForeign(
            "the data directory is that of a node in a cluster: set cluster.members as it was"
        )
    if disk.exists(NOTE):
        raise DataDirectoryForeign(
            "the data directory was promoted to be the first of a cluster: set cluster.members and "
            "start it, or take the promotion back with `perdure cluster promote --undo`"
        )


def check_cluster(disk: Disk, number: int | None) -> None:
    """Refuse to run a node of a cluster on a single node's directory that was not promoted.

    Raises:
        DataDirectoryForeign: it is.
    """
    if disk.exists(_REGISTER) and not disk.exists(NOTE):
        way = (
            "`perdure cluster promote`, with these settings, makes it the first of the cluster"
            if number == 1
            else "only the first of cluster.members may bring data; choose another --base-dir"
        )
        raise DataDirectoryForeign(f"the data directory is that of a single node: {way}")


async def promote(config: Config, entropy: Entropy) -> Intent:
    """Note that the stopped node is to be the first of its cluster; again is fine.

    Raises:
        InvalidConfiguration: the settings are not those of the first node of a cluster.
        DataDirectoryForeign, DataDirectoryDamaged: it is no single node's data directory.
        DataDirectoryLocked: the node runs.
    """
    members = [name for name, _ in config.cluster.members]
    if not members or members[0] != config.node_name:
        raise InvalidConfiguration(
            f"the node that is promoted comes first in cluster.members: give it the settings that "
            f"it is to run with, such as cluster.members='{config.node_name}=10.0.0.1:5123, …'"
        )
    folder = _folder(config)
    lock = lock_folder(folder)
    try:
        disk = open_disk(folder)
        known = read_note(disk)
        if known is None:
            known = await _plan(config, folder, disk, entropy)
            failpoint("promotion.planned")
            write_note(disk, known)
        elif len(known.storages) != len(members):
            raise DataDirectoryForeign(
                f"it was promoted with {len(known.storages)} members in cluster.members, now there "
                f"are {len(members)}: take it back first, with `perdure cluster promote --undo`"
            )
        return known
    finally:
        lock.release()


def undo(config: Config) -> None:
    """Take a promotion back that no start has begun to carry out.

    Raises:
        DataDirectoryForeign: there is nothing to take back, or it can't be any more.
    """
    folder = _folder(config)
    lock = lock_folder(folder)
    try:
        disk = open_disk(folder)
        note = read_note(disk)
        if note is None or note.promoted is None:
            raise DataDirectoryForeign(f"{folder} was not promoted")
        if disk.exists(MEMBER_FOLDER) and read_identity(OsDisk(folder / MEMBER_FOLDER)) is not None:
            raise DataDirectoryForeign(
                f"{folder} is in a cluster already, which may have gone on: restore a snapshot to "
                "get a single node again"
            )
        disk.remove(NOTE)
        disk.sync_folder("")
    finally:
        lock.release()


async def promoted_registers(disk: Disk, promoted: Promoted) -> dict[str, Versioned]:
    """The registers of the cluster: those of the single node, with logs that others can follow."""
    found = await LocalMetadata(disk).scan("")
    return {key: _promote(key, known, promoted) for key, known in found.items()}


def _promote(key: str, known: Versioned, promoted: Promoted) -> Versioned:
    if key == CLUSTER_KEY:
        cluster = msgspec.msgpack.decode(known.value, type=ClusterMeta)
        value: ClusterMeta | PartitionMeta = msgspec.structs.replace(
            cluster,
            replication=promoted.replication,
            partition_replicas=promoted.partition_replicas,
        )
    elif key.startswith(PARTITIONS_PREFIX):
        partition = int(key.removeprefix(PARTITIONS_PREFIX))
        meta = msgspec.msgpack.decode(known.value, type=PartitionMeta)
        # A single node lets go of records as its tables have them, whatever the chain says.
        begins = promoted.begins[partition]
        meta = chain.trim_prefix(meta, begins)
        value = msgspec.structs.replace(meta, trim_lsn=max(meta.trim_lsn, begins))
    else:
        return known
    return Versioned(known.version + 1, msgspec.msgpack.encode(value))


# --- What is there --------------------------------------------------------------------------------


def _folder(config: Config) -> Path:
    folder = config.base_dir / config.node_name
    if not folder.is_dir():
        raise DataDirectoryForeign(
            f"there is no data directory {folder}: say which with --base-dir and --node-name"
        )
    return folder


async def _plan(config: Config, folder: Path, disk: Disk, entropy: Entropy) -> Intent:
    marker = read_marker(disk)
    if marker is None or not disk.exists(_REGISTER):
        raise DataDirectoryForeign(f"{folder} is not the data directory of a single node")
    check_owner(marker, config.cluster_name, config.node_name)
    registers = await LocalMetadata(disk).scan("")
    cluster = msgspec.msgpack.decode(registers[CLUSTER_KEY].value, type=ClusterMeta)
    begins: dict[int, int] = {}
    for partition in range(cluster.partition_count):
        _check_led(partition, registers)
        begins[partition] = _durable_lsn(folder, cluster, partition) + 1
    numbers = range(1, len(config.cluster.members) + 1)
    copies = (config.cluster.replication, config.cluster.partition_replicas)
    return Intent(marker.fingerprint, draw_storages(numbers, entropy), Promoted(begins, *copies))


def _check_led(partition: int, registers: Mapping[str, Versioned]) -> None:
    """Only a log that has a writer says where the tables are."""
    found = registers.get(partition_key(partition))
    meta = msgspec.msgpack.decode(found.value, type=PartitionMeta) if found else chain.empty()
    if chain.open_segment(meta) is None:
        raise DataDirectoryDamaged(
            f"partition {partition} was never led here: start the single node once, wait until it "
            "serves, stop it, then promote it"
        )


def _durable_lsn(folder: Path, cluster: ClusterMeta, partition: int) -> int:
    env = LmdbEnv(folder / PARTITIONS_FOLDER / str(partition))
    store = PartitionStore(env, bytes.fromhex(cluster.fingerprint), PartitionId(partition))
    try:
        return store.durable_lsn
    finally:
        store.close()
