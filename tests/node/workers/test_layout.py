"""What a data directory is made for, and what each worker is told."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from perdure.core.entropy import SystemEntropy
from perdure.core.errors import AddressInUse, DataDirectoryDamaged, InvalidConfiguration
from perdure.node.config.cluster_model import ClusterConfig
from perdure.node.config.model import Config, WorkerConfig
from perdure.node.config.values import Address
from perdure.node.workers.layout import MARKER, SECRET, check_alone, prepare, worker_count
from perdure.node.workers.processes import SharedPorts


def _listening(address: Address) -> socket.socket:
    """As a worker does it."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((address.host, address.port))
    listener.listen()
    return listener


def configured(tmp_path: Path) -> Config:
    return Config(base_dir=tmp_path)


def test_each_worker_has_its_own_name_ports_and_folder(tmp_path: Path) -> None:
    one, two, three = prepare(configured(tmp_path), 3, SystemEntropy())
    assert [each.node_name for each in (one, two, three)] == ["worker-1", "worker-2", "worker-3"]
    ports = [each.bind_address.port for each in (one, two, three)]
    assert ports == [5122, 5132, 5142]
    assert [each.cluster.bind_address.port for each in (one, two, three)] == [5123, 5133, 5143]
    for each in (one, two, three):
        assert each.cluster.members == (("worker-1", "127.0.0.1:5123"),)
        assert (each.cluster.replication, each.cluster.partition_replicas) == (1, 1)
        assert each.cluster.secret_file == (tmp_path / SECRET).absolute()
        assert (tmp_path / each.node_name).is_dir()
    assert worker_count(tmp_path) == 3


def test_the_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    prepare(configured(tmp_path), 2, SystemEntropy())
    secret = (tmp_path / SECRET).read_text()
    assert len(bytes.fromhex(secret)) == 32
    assert (tmp_path / SECRET).stat().st_mode & 0o777 == 0o600
    prepare(configured(tmp_path), 2, SystemEntropy())
    assert (tmp_path / SECRET).read_text() == secret


def test_a_start_that_was_cut_short_is_made_good(tmp_path: Path) -> None:
    (tmp_path / SECRET).touch(0o600)
    (tmp_path / "worker-1").mkdir()
    (tmp_path / "lost+found").mkdir()  # a disk of its own
    prepare(configured(tmp_path), 2, SystemEntropy())
    assert len((tmp_path / SECRET).read_text().strip()) == 64


def test_another_number_is_refused(tmp_path: Path) -> None:
    prepare(configured(tmp_path), 2, SystemEntropy())
    with pytest.raises(InvalidConfiguration, match="start it with --workers 2"):
        prepare(configured(tmp_path), 3, SystemEntropy())
    with pytest.raises(InvalidConfiguration, match="perdure up --workers 2"):
        check_alone(tmp_path)


def test_what_a_single_node_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node-1").mkdir()
    check_alone(tmp_path)
    with pytest.raises(InvalidConfiguration, match="holds the data of node-1"):
        prepare(configured(tmp_path), 2, SystemEntropy())
    assert worker_count(tmp_path) is None


def test_what_workers_cannot_have_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with pytest.raises(InvalidConfiguration, match="as many partitions"):
        prepare(replace(config, worker=WorkerConfig(partition_count=2)), 3, SystemEntropy())
    clustered = replace(config, cluster=ClusterConfig(members=(("n1", "127.0.0.1:1"),)))
    with pytest.raises(InvalidConfiguration, match="perdure server"):
        prepare(clustered, 2, SystemEntropy())


def test_a_marker_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(DataDirectoryDamaged):
        check_alone(tmp_path)


def test_ports_are_held_against_others_from_the_start() -> None:
    one, two = SharedPorts(), SharedPorts()
    try:
        held = one.hold(Address("127.0.0.1", 0), "ingress.bind-address")
        assert held.port > 0
        with _listening(held), pytest.raises(AddressInUse, match=r"ingress\.bind-address"):
            two.hold(held, "ingress.bind-address")
    finally:
        one.close()
        two.close()
