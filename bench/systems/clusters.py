"""Clusters of three nodes on this machine: perdure and the reference server, configured alike.

Two copies of every record, two nodes per partition, as many partitions here as there; a service
beside them that all nodes call. No object store: nothing is trimmed while it is measured.
"""

import json
import socket
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

from bench.processes import READY_SECONDS, BenchFailed, Process, free_port
from bench.systems.restate_sdk import reference_binary, start_service

NODES = 3
PARTITIONS = 12
REPLICATION = 2
# Leaders settle within this time once all nodes are there, with both.
_SETTLED_SECONDS = 60.0
_CALM_SECONDS = 3.0
_POLL_SECONDS = 0.05


class Node:
    """One process, which keeps its ports and its directory."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        # Where the system wants the port after the fabric's, too.
        self.fabric_port = _free_pair()
        self.port, self.admin_port, self.own_port = free_port(), free_port(), free_port()
        self.process: Process | None = None

    @property
    def fabric(self) -> str:
        return f"127.0.0.1:{self.fabric_port}"

    def kill(self) -> None:
        """kill -9 of the process and all its children."""
        assert self.process is not None
        self.process.kill()
        self.process = None


class SdkCluster(ABC):
    """Three nodes and, beside them, the service of ``bench/service.py``."""

    name: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.nodes = [Node(f"node-{number}", folder) for number in range(1, NODES + 1)]
        self._service: Process | None = None

    @abstractmethod
    def command(self, node: Node) -> tuple[list[str], dict[str, str]]:
        """How a node is started, and with which environment."""

    @abstractmethod
    def led_by(self, node: Node) -> int:
        """How many partitions a living node leads, as it says itself."""

    def launch(self) -> None:
        """Start everything; returns when all of it can be called at all nodes."""
        self._service, port = start_service("python", self.folder)
        for node in self.nodes:
            self.start(node)
        for node in self.nodes:
            self.wait_healthy(node)
        _until(partial(self._register, f"http://127.0.0.1:{port}"), f"{self.name}: registered")
        for node in self.nodes:
            _until(partial(_answers, node), f"{self.name}: {node.name} answers")
        self.wait_settled()

    def start(self, node: Node) -> None:
        """Start a node's process; see ``wait_healthy``."""
        command, env = self.command(node)
        node.process = Process(command, env, self.folder / f"{self.name}-{node.name}.log")

    def wait_healthy(self, node: Node) -> None:
        """Wait until a node serves ingress."""
        assert node.process is not None
        node.process.wait_healthy(f"http://127.0.0.1:{node.port}/restate/health", node.port)

    def wait_settled(self) -> dict[str, int]:
        """Wait until all partitions are led, and that has been so for a while; by whom."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        known, since = dict[str, int](), time.monotonic()
        while sum(known.values()) != PARTITIONS or time.monotonic() - since < _CALM_SECONDS:
            found = {node.name: self.led_by(node) for node in self.nodes if node.process}
            if found != known:
                known, since = found, time.monotonic()
            if time.monotonic() > deadline:
                raise BenchFailed(f"{self.name}: led are {known}")
            time.sleep(_POLL_SECONDS)
        return known

    def busiest(self) -> Node:
        """Who leads most partitions."""
        led = self.wait_settled()
        return max(self.nodes, key=lambda node: led.get(node.name, 0))

    def move(self, partition: int) -> bool:
        """Have a partition led by another node; returns when it is, or False if nobody can."""
        return False

    def cpu_seconds(self) -> float:
        return sum(node.process.cpu_seconds() for node in self.nodes if node.process)

    def memory_bytes(self) -> int:
        return sum(node.process.memory_bytes() for node in self.nodes if node.process)

    def stop(self) -> None:
        """End everything at once."""
        for process in (*(node.process for node in self.nodes), self._service):
            if process is not None:
                process.kill()

    def _register(self, uri: str) -> bool:
        body = json.dumps({"uri": uri}).encode()
        return _ask(f"http://127.0.0.1:{self.nodes[0].admin_port}/deployments", body) is not None


class PerdureCluster(SdkCluster):
    name = "perdure"

    def command(self, node: Node) -> tuple[list[str], dict[str, str]]:
        members = ", ".join(f"{each.name}={each.fabric}" for each in self.nodes)
        env = {
            "PERDURE_NODE_NAME": node.name,
            "PERDURE_CLUSTER__MEMBERS": members,
            "PERDURE_CLUSTER__BIND_ADDRESS": node.fabric,
            "PERDURE_CLUSTER__REPLICATION": str(REPLICATION),
            "PERDURE_CLUSTER__PARTITION_REPLICAS": str(REPLICATION),
            "PERDURE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{node.port}",
            "PERDURE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{node.admin_port}",
            "PERDURE_BIND_ADDRESS": f"127.0.0.1:{node.own_port}",
            "PERDURE_WORKER__PARTITION_COUNT": str(PARTITIONS),
        }
        data = str(self.folder / node.name)
        return [sys.executable, "-m", "perdure", "server", "--base-dir", data], env

    def led_by(self, node: Node) -> int:
        lines = _metrics(node.own_port, "perdure_partition_is_leading{")
        return sum(line.endswith(" 1.0") for line in lines)

    def move(self, partition: int) -> bool:
        url = f"http://127.0.0.1:{self.nodes[0].admin_port}/perdure/partitions/{partition}"
        row = json.loads(_ask(url) or b"{}")
        others = [each["node"] for each in row["replicas"] if each["node"] != row["leader"]]
        return bool(others) and _ask(f"{url}/lead?to={others[0]}", method="PATCH") is not None


class ReferenceCluster(SdkCluster):
    name = "reference"

    def command(self, node: Node) -> tuple[list[str], dict[str, str]]:
        addresses = json.dumps([f"http://{each.fabric}" for each in self.nodes])
        env = {
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_CLUSTER_NAME": "bench",
            "RESTATE_NODE_NAME": node.name,
            "RESTATE_AUTO_PROVISION": "true" if node is self.nodes[0] else "false",
            "RESTATE_DEFAULT_REPLICATION": str(REPLICATION),
            "RESTATE_DEFAULT_NUM_PARTITIONS": str(PARTITIONS),
            "RESTATE_METADATA_CLIENT__ADDRESSES": addresses,
            "RESTATE_BIND_ADDRESS": node.fabric,
            "RESTATE_ADVERTISED_ADDRESS": f"http://{node.fabric}",
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{node.port}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{node.admin_port}",
        }
        return [str(reference_binary()), "--base-dir", str(self.folder / node.name)], env

    def led_by(self, node: Node) -> int:
        lines = _metrics(node.fabric_port, "restate_num_active_partition_leaders{")
        return sum(round(float(line.rpartition(" ")[2])) for line in lines)


CLUSTERS: dict[str, type[SdkCluster]] = {
    kind.name: kind for kind in (PerdureCluster, ReferenceCluster)
}


def _answers(node: Node) -> bool:
    return _ask(f"http://127.0.0.1:{node.port}/Bench/steps", b"1") == b"1"


def _ask(url: str, body: bytes | None = None, method: str | None = None) -> bytes | None:
    """The body of a good answer; None for any other end."""
    headers = {"content-type": "application/json", "accept": "application/json"}
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def _metrics(port: int, name: str) -> list[str]:
    text = _ask(f"http://127.0.0.1:{port}/metrics") or b""
    return [line for line in text.decode().splitlines() if line.startswith(name)]


def _until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise BenchFailed(f"{what}: not within {READY_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


def _free_pair() -> int:
    """A port that is free, as is the next one."""
    while True:
        port = free_port()
        if _is_free(port + 1):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
        return True
