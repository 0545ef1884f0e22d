"""A cluster out of a set of snapshots: its registers, and what is refused."""

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.node.test_restore import OWNER, add_member, make_set

from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.membership import CLUSTER_FORMAT_VERSION, CLUSTER_KEY, ClusterMeta
from perdure.cluster.core.trim import DurabilityMode
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.takeover import partition_key
from perdure.core.errors import InvalidConfiguration, SnapshotDamaged, SnapshotNotFound
from perdure.core.limits_snapshots import TRIM_DELAY_MS, TRIM_NAMED_MS
from perdure.node.config.model import Config, SnapshotsConfig, WorkerConfig
from perdure.node.origin import (
    Origin,
    check_destinations,
    find_document,
    read_origin,
    restored_registers,
)
from perdure.node.registry import store as registry_store
from perdure.node.snapshots import trim_policy
from perdure.storage import snapshots
from perdure.storage.data_directory import open_disk
from perdure.storage.object_store import DirectoryStore
from perdure.storage.snapshot_format import SnapshotSet

OLD = "file:///old"
WANTED = ClusterMeta(
    format=CLUSTER_FORMAT_VERSION,
    name="new",
    fingerprint="ab" * 16,
    partition_count=99,
    replication=2,
    partition_replicas=3,
)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "bucket")


@pytest.fixture
def document(store: DirectoryStore, tmp_path: Path) -> SnapshotSet:
    snapshots.claim_prefix(store, OWNER)
    members = [add_member(store, tmp_path / f"env{n}", n, 5 + n) for n in range(3)]
    found = make_set(members)
    snapshots.put_set(store, found)
    return found


def test_all_registers_of_the_new_cluster_come_out_of_the_set(
    store: DirectoryStore, document: SnapshotSet, tmp_path: Path
) -> None:
    assert find_document(store, None) == find_document(store, document.name) == document
    registers = restored_registers(OLD, document, WANTED)
    assert all(found.version == 1 for found in registers.values())
    cluster = msgspec.msgpack.decode(registers[CLUSTER_KEY].value, type=ClusterMeta)
    assert cluster == msgspec.structs.replace(WANTED, partition_count=3)
    assert registers[registry_store.KEY].value == document.registry
    for member in document.members:
        raw = registers[partition_key(member.partition)].value
        meta = msgspec.msgpack.decode(raw, type=PartitionMeta)
        assert (meta.trim_lsn, meta.epoch, meta.chain) == (
            member.snapshot.lsn + 1,
            member.snapshot.epoch,
            (),
        )
        assert not meta.replicas.named

    async def read() -> tuple[Origin | None, Origin | None]:
        metadata = LocalMetadata(open_disk(tmp_path))
        before = await read_origin(metadata)
        for key, found in registers.items():
            assert isinstance(await metadata.cas(key, None, found.value), Versioned)
        return before, await read_origin(metadata)

    before, origin = asyncio.run(read())
    assert before is None
    assert origin is not None
    assert origin.destination == OLD
    assert origin.document == msgspec.structs.replace(document, registry=b"")


def test_a_set_that_lacks_partitions_makes_no_cluster(
    store: DirectoryStore, document: SnapshotSet
) -> None:
    broken = msgspec.structs.replace(document, id="broken", members=document.members[1:])
    snapshots.put_set(store, broken)
    with pytest.raises(SnapshotDamaged, match="lacks partitions"):
        find_document(store, broken.name)
    with pytest.raises(SnapshotNotFound):
        find_document(store, "other")


def test_the_new_clusters_snapshots_go_elsewhere() -> None:
    check_destinations(OLD, None)
    check_destinations(OLD, "file:///new")
    with pytest.raises(InvalidConfiguration, match="destination of their own"):
        check_destinations(OLD, OLD)


def _config(destination: str | None, mode: DurabilityMode | None, delay_ms: int | None) -> Config:
    return replace(
        Config(),
        snapshots=SnapshotsConfig(destination=destination),
        worker=WorkerConfig(durability_mode=mode, trim_delay_ms=delay_ms),
    )


@pytest.mark.parametrize(
    ("destination", "mode", "delay_ms", "trims_by", "after_ms"),
    [
        (None, None, None, DurabilityMode.REPLICAS, TRIM_NAMED_MS),
        (OLD, None, None, DurabilityMode.BALANCED, TRIM_DELAY_MS),
        (OLD, None, 60_000, DurabilityMode.BALANCED, 60_000),
        (OLD, DurabilityMode.REPLICAS, None, DurabilityMode.REPLICAS, TRIM_NAMED_MS),
        (OLD, DurabilityMode.BOTH, 0, DurabilityMode.BOTH, TRIM_NAMED_MS),
        (None, DurabilityMode.NONE, 0, DurabilityMode.NONE, TRIM_NAMED_MS),
    ],
)
def test_how_the_log_is_trimmed(
    destination: str | None,
    mode: DurabilityMode | None,
    delay_ms: int | None,
    trims_by: DurabilityMode,
    after_ms: int,
) -> None:
    policy = trim_policy(_config(destination, mode, delay_ms))
    assert (policy.mode, policy.delay_ms) == (trims_by, after_ms)


@pytest.mark.parametrize(
    "mode", [DurabilityMode.SNAPSHOT, DurabilityMode.BALANCED, DurabilityMode.BOTH]
)
def test_a_mode_that_would_never_trim_is_refused(mode: DurabilityMode) -> None:
    with pytest.raises(InvalidConfiguration, match=mode.value):
        trim_policy(_config(None, mode, None))
