"""Three server processes whose metadata is in an etcd that somebody runs anyway.

Needs ``etcd`` on the path (``apt-get install etcd-server``); without it there are no tests here.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.metadata.backends import EtcdServer
from tests.process.calls import request
from tests.process.cluster import ClusterServers
from tests.process.commands import perdure
from tests.process.processes import ROOT, ManagedProcess

_PASSWORD = "correct horse"


class EtcdCluster:
    """An etcd that wants a password, and nodes that know it."""

    def __init__(self, folder: Path) -> None:
        self.etcd = EtcdServer(folder)
        self.etcd.start()
        self.etcd.want_password("perdure", _PASSWORD, "mine/")
        password = folder / "password"
        password.write_text(f"{_PASSWORD}\n")
        self.settings = {
            "PERDURE_ETCD__ENDPOINTS": self.etcd.endpoint,
            "PERDURE_ETCD__PREFIX": "mine/",
            "PERDURE_ETCD__USER": "perdure",
            "PERDURE_ETCD__PASSWORD_FILE": str(password),
            "PERDURE_CLUSTER__MEMBERS": "none",
        }
        self.servers = ClusterServers(folder, self.settings)

    def close(self) -> None:
        for node in self.servers.nodes:
            ManagedProcess.close(node)
        self.etcd.stop()


def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path)
    yield cluster
    cluster.close()


def three_nodes_form_and_take_over(cluster: EtcdCluster) -> None:
    async def main() -> None:
        servers = cluster.servers
        servers.start()
        await servers.wait_healthy()
        busiest = await servers.find_busiest()
        assert busiest.metadata_process() is None
        busiest.kill()
        left = [node for node in servers.nodes if node is not busiest]
        await servers.wait_led(left)
        busiest.start()
        await busiest.wait_healthy()
        document = await request(busiest.admin_port, "GET", "/perdure/cluster")
        nodes = document.json()["nodes"]
        assert sorted(row["name"] for row in nodes) == ["n1", "n2", "n3"]
        assert {row["metadata"] for row in nodes} == {"standby"}

    asyncio.run(main())


def a_cluster_moves_its_metadata_there(cluster: EtcdCluster, tmp_path: Path) -> None:
    """Nodes that kept it themselves are killed, and go on with a copy of it in the etcd."""
    servers = ClusterServers(tmp_path)

    async def form() -> None:
        servers.start()
        await servers.wait_healthy()
        await servers.wait_wide()

    async def go_on() -> None:
        for node in servers.nodes:
            node.environment |= cluster.settings
        servers.start()
        await servers.wait_healthy()
        document = await request(servers.nodes[0].admin_port, "GET", "/perdure/metadata")
        assert document.json()["backend"] == "etcd"

    file = tmp_path / "copy"
    try:
        asyncio.run(form())
        code, told = perdure(servers.nodes[0], "metadata", "backup", str(file))
        assert code == 0, told
        for node in servers.nodes:
            node.kill()
        done = subprocess.run(
            [sys.executable, "-m", "perdure", "metadata", "restore", str(file), "--yes"],
            cwd=ROOT,
            env={**os.environ, **cluster.settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        asyncio.run(go_on())
    finally:
        for node in servers.nodes:
            ManagedProcess.close(node)


if shutil.which("etcd") is not None:
    cluster = pytest.fixture(cluster)
    test_three_nodes_form_and_take_over = pytest.mark.slow(three_nodes_form_and_take_over)
    test_a_cluster_moves_its_metadata_there = pytest.mark.slow(a_cluster_moves_its_metadata_there)
