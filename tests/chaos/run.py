"""One chaos run: the composed cluster in namespaces, load on all of its nodes, one kind of fault.

The clients and what they check are those of the crash tests (``tests/process/driver.py``); beside
them others work on numbers, whose history must be linearizable. Requests go to the published ports
of the nodes in turn, from outside of their network, whether the nodes live or not.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from deploy.namespaces.compose import Mount, Service, read_services
from deploy.namespaces.machine import IMAGES, ROOT, Container, Machine
from tests.chaos.linearizability import Number, check
from tests.chaos.numbers import NumberClients
from tests.process.calls import Answer, Unanswered, post_json, request
from tests.process.driver import CrashRun, RunOptions
from tests.process.processes import ProcessFailed, ServerProcess, watch
from tests.process.programs import CELL

SERVICE = "programs"
INGRESS = 8080
ADMIN = 9070
_SERVICE_PORT = 9080
_LEDGER = "/ledger"
_NUMBER_CLIENTS = 6
_ANSWER_SECONDS = 12.0
_GLANCE_SECONDS = 3.0
_FORMED_SECONDS = 90.0
# Until everything is as if nothing had happened, from the end of a fault on.
_HEALED_SECONDS = 120.0
_COMPARED_SECONDS = 60.0
_DISK_BYTES = 1 << 30


class ChaosRun(CrashRun):
    """The state of a run. ``absent``: nodes that aren't expected to come back."""

    def __init__(self, folder: Path, options: RunOptions) -> None:
        super().__init__(folder, options, ServerProcess(folder / "unused"))
        services = read_services(stand_ins=IMAGES)
        services[SERVICE] = _programs(self.service.ledger_path)
        self.machine = Machine(
            folder, services, seed=options.seed, disk_bytes=_DISK_BYTES, publish=False
        )
        self.nodes = [item for item in self.machine.containers.values() if item.service.is_built]
        self.absent: set[str] = set()
        self.numbers = NumberClients(self)
        self.compared = 0  # segments of logs
        self._turns = count()

    # --- What the crash run asks for ------------------------------------------------------------

    @property
    def ingress_port(self) -> int:
        """Of another node each time."""
        return self.nodes[next(self._turns) % len(self.nodes)].ports[INGRESS]

    def check_alive(self) -> None:
        for node in self.nodes:
            process = node.process
            if node.name not in self.absent and process is not None:
                self.expect(process.poll() is None, f"{node.name} ended by itself: {tail(node)}")

    async def start(self) -> None:
        """Bring all up, register at one node, wait until the others know."""
        self.machine.start()
        await self.wait_healed(_FORMED_SECONDS)
        uri = {"uri": f"http://{SERVICE}:{_SERVICE_PORT}"}
        answer = await self.insist(lambda: post_json(self.admin_port(), "/deployments", uri))
        assert answer.status in (200, 201), answer
        async with asyncio.timeout(_FORMED_SECONDS):
            for node in self.nodes:
                port = node.ports[ADMIN]
                while (await request(port, "GET", f"/services/{CELL}")).status != 200:
                    await self.breathe()

    def close(self) -> None:
        self.machine.close()
        super().close()

    async def insist(self, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        """As ever, but a node that says nothing for long is left for the next one."""
        return await super().insist(lambda: self.limited(attempt))

    async def limited(
        self, attempt: Callable[[], Awaitable[Answer]], seconds: float = _ANSWER_SECONDS
    ) -> Answer:
        """An attempt with an end.

        Raises:
            Unanswered: of this one nothing is known.
        """
        try:
            async with asyncio.timeout(seconds):
                return await attempt()
        except TimeoutError as error:
            raise Unanswered("no answer for long") from error

    def admin_port(self) -> int:
        return self.nodes[next(self._turns) % len(self.nodes)].ports[ADMIN]

    def others_admin(self, node: Container) -> Callable[[str, str], Awaitable[Answer]]:
        """Asks the admin API of another node than this one."""
        port = next(item for item in self._present() if item is not node).ports[ADMIN]
        return lambda method, path: request(port, method, path)

    # --- How the cluster is -----------------------------------------------------------------------

    async def glance(self, node: Container) -> dict[str, Any] | None:
        """The cluster as one node sees it; None if it doesn't answer."""
        with suppress(Unanswered, TimeoutError):
            async with asyncio.timeout(_GLANCE_SECONDS):
                answer = await request(node.ports[ADMIN], "GET", "/perdure/cluster")
                document: dict[str, Any] = answer.json()
                return document if answer.status == 200 else None
        return None

    async def find_busiest(self) -> Container:
        """Who leads most, as the others see it."""
        deadline = time.monotonic() + _HEALED_SECONDS
        while time.monotonic() < deadline:
            for node in self._present():
                if (seen := await self.glance(node)) is not None:
                    led = {row["name"]: row["leads"] for row in seen["nodes"]}
                    return max(self._present(), key=lambda item: led.get(item.name, 0))
            await self.breathe()
        raise ProcessFailed("no node says who leads")

    async def wait_healed(self, timeout_seconds: float = _HEALED_SECONDS) -> None:
        """Wait until every node that is there sees the others alive and each partition led."""

        async def ills() -> list[str]:
            self.check_alive()
            return [text for node in self._present() if (text := await self._ail(node))]

        await watch(
            ills,
            lambda found: not found,
            timeout_seconds,
            lambda found: f"it doesn't heal: {found}" + "".join(tail(node) for node in self.nodes),
        )

    async def _ail(self, node: Container) -> str:
        seen = await self.glance(node)
        if seen is None:
            return f"{node.name} doesn't answer"
        present = {item.name for item in self._present()}
        states = {row["name"]: row["state"] for row in seen["nodes"]}
        if away := [name for name in present if states.get(name) != "alive"]:
            return f"{node.name} misses {away}"
        led = [row.get("leader") in present for row in seen["partitions"]]
        return "" if led and all(led) else f"{node.name} sees {led.count(False)} not led"

    def _present(self) -> list[Container]:
        return [node for node in self.nodes if node.name not in self.absent]

    # --- Load and verdict -------------------------------------------------------------------------

    async def load(self, fault: Callable[["ChaosRun"], Awaitable[None]]) -> None:
        """Clients under a fault, until everything that was asked for is done."""
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.wake(done))
            clients = [group.create_task(self.client(n)) for n in range(self.options.clients)]
            for number in range(_NUMBER_CLIENTS):
                clients.append(group.create_task(self.numbers.client(number)))
            await fault(self)
            self.machine.network.heal()
            await self.wait_healed()
            self.calm.set()
            async with asyncio.timeout(self.options.finish_seconds):
                await asyncio.gather(*clients)
            await self.wait_quiet()
            done.set()

    async def judge(self) -> None:
        """Hold everything that was seen against the models."""
        cells = await self.read_cells()
        self.check(cells)
        await self.attach_all()
        await self.repeat_all()
        self.expect(await self.read_cells() == cells, "requests that came again had an effect")
        for verdict in check(self.numbers.history, Number()):
            self.expect(verdict.is_linearizable, str(verdict))
        await self._compare_replicas()
        self.check_alive()
        for node in self._present():
            await self._stop(node)

    async def _compare_replicas(self) -> None:
        """No two replicas of a log may differ, and nothing of it may be on none of them."""
        port = self._present()[0].ports[ADMIN]
        seen = await request(port, "GET", "/perdure/logs")
        for log in seen.json()["logs"]:
            path = f"/perdure/logs/{log['partition']}/verify"
            answer = await request(port, "POST", path)
            async with asyncio.timeout(_COMPARED_SECONDS):
                while answer.status in (200, 202) and answer.json()["is_under_way"]:
                    await self.breathe()
                    answer = await request(port, "GET", path)
            found = answer.json()
            ill = [row for row in found["segments"] if row["diverging"] or row["missing"]]
            self.expect("failure" not in found and not ill, f"the log is not sound: {found}")
            self.compared += len(found["segments"])

    async def _stop(self, node: Container) -> None:
        code = await asyncio.to_thread(node.stop)
        self.expect(code == 0, f"{node.name} ended with {code} after SIGTERM: {tail(node)}")


def tail(node: Container, line_count: int = 12) -> str:
    """The end of a node's log, for a failure's message."""
    lines = node.log_path.read_text(errors="replace").splitlines()[-line_count:]
    return "".join(f"\n  {node.name}| {line}" for line in lines)


def _programs(ledger: Path) -> Service:
    """The service under test, beside what the compose file has."""
    module = (sys.executable, "-m", "tests.chaos.service")
    return Service(
        name=SERVICE,
        image="python",
        is_built=False,
        command=(*module, "--port", str(_SERVICE_PORT), "--ledger", _LEDGER),
        environment={},
        folder=str(ROOT),
        mounts=(Mount(str(ledger), _LEDGER),),
    )
