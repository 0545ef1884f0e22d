"""Promoting a single node: what is noted, what is refused, what the cluster's registers will be."""

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.membership import CLUSTER_KEY, ClusterMeta, NodeMeta, node_key
from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.metadata.provision import provision
from perdure.cluster.metadata.raft_links import MemberIdentity
from perdure.cluster.metadata.server import FOLDER as MEMBER_FOLDER
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.takeover import decode_meta, partition_key
from perdure.core import failpoint
from perdure.core.entropy import SystemEntropy
from perdure.core.errors import (
    DataDirectoryDamaged,
    DataDirectoryForeign,
    DataDirectoryLocked,
    InvalidConfiguration,
)
from perdure.node.config.model import Config
from perdure.node.identity import establish
from perdure.node.promotion import (
    NOTE,
    Intent,
    check_cluster,
    check_single,
    promote,
    promoted_registers,
    read_note,
    undo,
)
from perdure.storage.data_directory import lock_folder, open_disk
from perdure.storage.disk import OsDisk
from perdure.storage.env import LmdbEnv
from perdure.storage.partition_store import PartitionStore

PARTITIONS = 2
MEMBERS = (("n1", "127.0.0.1:1"), ("n2", "127.0.0.1:2"), ("n3", "127.0.0.1:3"))
NAMES = ("localcluster", "n1")


class Crash(BaseException):
    """The process dies here."""


def make_config(base: Path, members: tuple[tuple[str, str], ...] = MEMBERS) -> Config:
    config = Config()
    cluster = replace(config.cluster, members=members, replication=2, partition_replicas=3)
    return replace(
        config, base_dir=base, node_name=NAMES[1], cluster_name=NAMES[0], cluster=cluster
    )


def start_single(folder: Path) -> None:
    """As a single node's start: registers, marker, generation."""
    folder.mkdir(parents=True, exist_ok=True)
    disk = OsDisk(folder)
    asyncio.run(establish(disk, LocalMetadata(disk), SystemEntropy(), NAMES, PARTITIONS))


def make_single(folder: Path, applied: int) -> None:
    """A single node that has stopped: two segments, tables that have applied so much."""
    start_single(folder)
    disk = OsDisk(folder)

    async def lead() -> None:
        local = LocalMetadata(disk)
        node = await local.get(node_key(NodeId(1)))
        assert node is not None
        known = msgspec.msgpack.decode(node.value, type=NodeMeta)
        member = Member(NodeId(1), bytes.fromhex(known.storage_uuid))
        for partition in range(PARTITIONS):
            meta = chain.empty()
            for incarnation, tail in ((1, 0), (2, 10)):
                writer = Writer(NodeId(1), incarnation, incarnation)
                claimed = chain.claim(meta, writer, "start")
                assert claimed.claim is not None
                extended = chain.extend(claimed, claimed.claim, tail, (member,), 1)
                assert extended is not None
                meta = extended
            await local.cas(partition_key(partition), None, msgspec.msgpack.encode(meta))

    asyncio.run(lead())
    marker = asyncio.run(LocalMetadata(disk).get(CLUSTER_KEY))
    assert marker is not None
    cluster = msgspec.msgpack.decode(marker.value, type=ClusterMeta)
    for partition in range(PARTITIONS):
        path = folder / "partitions" / str(partition)
        path.mkdir(parents=True)
        tables = PartitionStore(LmdbEnv(path), bytes.fromhex(cluster.fingerprint), partition)
        tables.applied_lsn = applied
        flush = tables.freeze()
        flush.run()
        tables.finish(flush)
        tables.close()


def do_promote(base: Path, members: tuple[tuple[str, str], ...] = MEMBERS) -> Intent:
    return asyncio.run(promote(make_config(base, members), SystemEntropy()))


def registers_of(folder: Path) -> tuple[dict[str, Versioned], dict[str, Versioned]]:
    """As they are, and as they will be."""
    disk = open_disk(folder)
    note = read_note(disk)
    assert note is not None
    assert note.promoted is not None
    return (
        asyncio.run(LocalMetadata(disk).scan("")),
        asyncio.run(promoted_registers(disk, note.promoted)),
    )


@pytest.mark.parametrize(
    ("applied", "bases"),
    [(0, [1, 11]), (4, [1, 11]), (9, [1, 11]), (10, [11]), (25, [11])],
)
def test_others_get_tables_for_what_the_tables_have(
    tmp_path: Path, applied: int, bases: list[int]
) -> None:
    folder = tmp_path / "n1"
    make_single(folder, applied)
    do_promote(tmp_path)
    before, after = registers_of(folder)
    assert before.keys() == after.keys()
    cluster = msgspec.msgpack.decode(after[CLUSTER_KEY].value, type=ClusterMeta)
    assert (cluster.replication, cluster.partition_replicas) == (2, 3)
    assert after[node_key(NodeId(1))] == before[node_key(NodeId(1))]
    for partition in range(PARTITIONS):
        was, now = before[partition_key(partition)], after[partition_key(partition)]
        assert now.version == was.version + 1
        old, new = decode_meta(was), decode_meta(now)
        assert new.trim_lsn == applied + 1
        assert [segment.base_lsn for segment in new.chain] == bases
        assert new.chain == old.chain[-len(bases) :]
        assert (new.epoch, new.claim) == (old.epoch, old.claim)


def test_the_same_promotion_again_changes_nothing(tmp_path: Path) -> None:
    make_single(tmp_path / "n1", 3)
    noted = do_promote(tmp_path)
    assert sorted(noted.storages) == [1, 2, 3]
    assert do_promote(tmp_path) == noted
    with pytest.raises(DataDirectoryForeign, match="--undo"):
        do_promote(tmp_path, MEMBERS[:1])


def test_a_promotion_that_dies_has_noted_all_or_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "n1"
    make_single(folder, 3)

    def die() -> None:
        raise Crash

    failpoint.arm("promotion.planned", die)
    try:
        with pytest.raises(Crash):
            do_promote(tmp_path)
    finally:
        failpoint.disarm_all()
    start_single(folder)  # nothing has happened
    do_promote(tmp_path)
    with pytest.raises(DataDirectoryForeign, match="cluster promote --undo"):
        start_single(folder)


def test_it_can_be_taken_back_until_it_has_begun(tmp_path: Path) -> None:
    folder = tmp_path / "n1"
    make_single(folder, 3)
    with pytest.raises(DataDirectoryForeign, match="not promoted"):
        undo(make_config(tmp_path))
    do_promote(tmp_path)
    undo(make_config(tmp_path))
    start_single(folder)
    noted = do_promote(tmp_path)
    member = folder / MEMBER_FOLDER
    member.mkdir()
    provision(OsDisk(member), MemberIdentity(noted.cluster, 1, noted.storages), SystemEntropy())
    with pytest.raises(DataDirectoryForeign, match="in a cluster already"):
        undo(make_config(tmp_path))
    with pytest.raises(DataDirectoryForeign, match=r"set cluster\.members"):
        start_single(folder)


def test_who_can_t_be_promoted(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryForeign, match="--base-dir"):
        do_promote(tmp_path)
    folder = tmp_path / "n1"
    folder.mkdir()
    with pytest.raises(DataDirectoryForeign, match="single node"):
        do_promote(tmp_path)
    start_single(folder)
    with pytest.raises(DataDirectoryDamaged, match="never led"):
        do_promote(tmp_path)
    for members in ((), MEMBERS[1:], MEMBERS[::-1]):
        with pytest.raises(InvalidConfiguration, match="comes first"):
            do_promote(tmp_path, members)
    with pytest.raises(DataDirectoryForeign, match="belongs to node"):
        asyncio.run(promote(replace(make_config(tmp_path), cluster_name="other"), SystemEntropy()))
    lock = lock_folder(folder)
    try:
        with pytest.raises(DataDirectoryLocked):
            do_promote(tmp_path)
    finally:
        lock.release()


def test_a_single_node_s_directory_is_no_cluster_s(tmp_path: Path) -> None:
    folder = tmp_path / "n1"
    folder.mkdir()
    disk = OsDisk(folder)
    check_cluster(disk, 1)
    check_single(disk)
    make_single(folder, 3)
    with pytest.raises(DataDirectoryForeign, match="perdure cluster promote"):
        check_cluster(disk, 1)
    for number in (2, None):
        with pytest.raises(DataDirectoryForeign, match="--base-dir"):
            check_cluster(disk, number)
    do_promote(tmp_path)
    assert disk.exists(NOTE)
    check_cluster(disk, 1)


def test_a_partition_s_register_stays_a_chain(tmp_path: Path) -> None:
    make_single(tmp_path / "n1", 12)
    do_promote(tmp_path)
    _, after = registers_of(tmp_path / "n1")
    meta: PartitionMeta = decode_meta(after[partition_key(0)])
    opened = chain.open_segment(meta)
    assert opened is not None
    assert opened.base_lsn < meta.trim_lsn
    assert chain.trim_prefix(meta, meta.trim_lsn) == meta
