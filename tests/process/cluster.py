"""Three perdure servers that are one cluster, and a crash run against them.

Requests go to the nodes in turn, whether they live or not: a client whose node is gone finds the
next one by itself, as it would behind a load balancer.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from urllib.parse import quote

from tests.process.calls import request
from tests.process.driver import CrashRun, RunOptions
from tests.process.processes import (
    ManagedProcess,
    ServerProcess,
    free_ports,
    led_by,
    wait_listening,
    watch,
)
from tests.process.programs import CELL

NODES = 3
PARTITIONS = 8
_PORTS_EACH = 5
# Longer than the controller's pace.
_KNOWN_SECONDS = 10.0


class ClusterNode(ServerProcess):
    """One of the processes; its cluster port is ``base``, its metadata's the next one."""

    def __init__(
        self, folder: Path, number: int, base: int, members: str, settings: Mapping[str, str]
    ) -> None:
        super().__init__(folder / f"node-{number}")
        self.node_name = f"n{number}"
        self.address = f"127.0.0.1:{base}"
        self.ingress_port, self.admin_port, self.own_port = base + 2, base + 3, base + 4
        ManagedProcess.__init__(
            self,
            self.node_name,
            [sys.executable, "-m", "perdure", "server", "--base-dir", str(self.base_dir)],
            folder / f"node-{number}.log",
            {
                "PERDURE_NODE_NAME": self.node_name,
                "PERDURE_CLUSTER__MEMBERS": members,
                "PERDURE_CLUSTER__BIND_ADDRESS": self.address,
                "PERDURE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{self.ingress_port}",
                "PERDURE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{self.admin_port}",
                "PERDURE_BIND_ADDRESS": f"127.0.0.1:{self.own_port}",
                "PERDURE_WORKER__PARTITION_COUNT": str(PARTITIONS),
                "PERDURE_LOG_FORMAT": "compact",
                **settings,
            },
        )

    @property
    def data(self) -> Path:
        return self.base_dir / self.node_name

    async def led(self) -> set[int]:
        """The partitions that it leads; none if it doesn't answer."""
        return await led_by(self.own_port)

    async def wait_logged(self, text: str, timeout_seconds: float = 30.0) -> None:
        """Wait until its log has a text."""

        async def read() -> str:
            return self.log_path.read_text()

        await watch(
            read,
            lambda written: text in written,
            timeout_seconds,
            lambda _: f"{text} isn't in the log{self.log_tail()}",
        )

    def metadata_process(self) -> int | None:
        """The process id of its metadata member; None while there is none."""
        process = self.check_alive()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def signal(self, number: signal.Signals) -> None:
        self.check_alive().send_signal(number)


class ClusterServers:
    """All of them."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        base = free_ports(NODES * _PORTS_EACH)
        numbers = range(1, NODES + 1)
        bases = {number: base + (number - 1) * _PORTS_EACH for number in numbers}
        members = ", ".join(f"n{number}=127.0.0.1:{bases[number]}" for number in numbers)
        self.nodes = [
            ClusterNode(folder, number, bases[number], members, settings or {})
            for number in numbers
        ]

    def start(self) -> None:
        for node in self.nodes:
            node.start()

    async def wait_healthy(self, timeout_seconds: float = 60.0) -> float:
        """Wait until all serve and each partition has a leader; returns the seconds it took."""
        started = time.monotonic()
        for node in self.nodes:
            await node.wait_healthy(timeout_seconds)
        await self.wait_led(self.nodes, timeout_seconds)
        return time.monotonic() - started

    async def wait_led(
        self, nodes: list[ClusterNode], timeout_seconds: float = 60.0
    ) -> dict[str, int]:
        """Wait until these lead all partitions; how many each of them leads."""

        async def look() -> dict[str, set[int]]:
            return {node.node_name: await node.led() for node in nodes}

        led = await watch(
            look,
            lambda led: sorted(chain(*led.values())) == list(range(PARTITIONS)),
            timeout_seconds,
            lambda led: f"led are {led}" + "".join(node.log_tail(15) for node in nodes),
        )
        return {name: len(partitions) for name, partitions in led.items()}

    async def wait_wide(self, timeout_seconds: float = 60.0) -> None:
        """Wait until the segments that were opened before all nodes were there have been replaced:
        until every log is written to all nodes, in the eyes of each."""

        async def widths() -> list[int]:
            answers = [
                await request(node.admin_port, "GET", "/perdure/logs") for node in self.nodes
            ]
            return [len(log["nodeset"]) for answer in answers for log in answer.json()["logs"]]

        await watch(
            widths,
            lambda found: found == [len(self.nodes)] * PARTITIONS * len(self.nodes),
            timeout_seconds,
            lambda found: f"logs are on so many nodes: {found}",
        )

    async def find_busiest(self) -> ClusterNode:
        """Who leads most, once all partitions are led."""
        led = await self.wait_led(self.nodes)
        return max(self.nodes, key=lambda node: led[node.node_name])

    def close(self) -> None:
        for node in self.nodes:
            node.close()


class ClusterRun(CrashRun):
    """Random programs against all nodes in turn, and what the longest wait for an answer was."""

    def __init__(self, folder: Path, options: RunOptions, cluster: ClusterServers) -> None:
        super().__init__(folder, options, cluster.nodes[0])
        self.cluster = cluster
        self.pauses: dict[str, float] = {}
        self._turns = count()
        self._waits: list[tuple[float, float]] = []

    @property
    def ingress_port(self) -> int:
        """Another one each time."""
        nodes = self.cluster.nodes
        return nodes[next(self._turns) % len(nodes)].ingress_port

    def check_alive(self) -> None:
        """At the end all of them run."""
        for node in self.cluster.nodes:
            node.check_alive()

    async def start(self) -> None:
        """Bring all up; register at the last node only, and wait until the others know of it."""
        self.cluster.start()
        self.service.start()
        await wait_listening(self.service, self.service.port)
        await self.cluster.wait_healthy()
        await self.cluster.nodes[-1].register(self.service.port)
        async with asyncio.timeout(_KNOWN_SECONDS):
            for node in self.cluster.nodes:
                while (await request(node.admin_port, "GET", f"/services/{CELL}")).status != 200:
                    await self.breathe()

    def close(self) -> None:
        self.cluster.close()
        super().close()

    async def pulse(self, key: str) -> None:
        """Read one cell again and again; each wait is noted."""
        while not self.calm.is_set():
            began = time.monotonic()
            answer = await self.get(f"/{CELL}/{quote(key, safe='')}/read")
            self.expect(answer.status == 200, f"reading {key} gave {answer}")
            self._waits.append((began, time.monotonic()))
            await self.breathe()

    def note_pause(self, what: str, since: float) -> None:
        """The longest wait for an answer that was over after ``since``."""
        waits = (ended - began for began, ended in self._waits if ended > since)
        self.pauses[what] = round(max(waits, default=0.0), 2)
