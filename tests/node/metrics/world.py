"""A whole node on the test's own loop, and a deployment that speaks the protocol by hand."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from prometheus_client import Metric
from prometheus_client.parser import (
    text_string_to_metric_families,  # pyright: ignore[reportUnknownVariableType]
)

from perdure.core.clock import SystemClock
from perdure.core.tasks import Supervisor
from perdure.node.config.model import Config
from perdure.node.config.values import Address
from perdure.node.http.cores import make_server_core
from perdure.node.http.exchange import Application
from perdure.node.http.server import HttpServer
from perdure.node.server import Node, ReadyInfo

T = TypeVar("T")
DEADLINE_SECONDS = 10.0
PARTITION_COUNT = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    url: str, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """One HTTP/1.1 request on a connection of its own."""
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    async with asyncio.timeout(DEADLINE_SECONDS):
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = [f"{method} {path} HTTP/1.1", f"host: {host}:{port}", "connection: close"]
        lines.append(f"content-length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            received = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
    head, _, content = received.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    pairs = (field.partition(": ") for field in fields)
    return Answer(int(status.split()[1]), {key.lower(): text for key, _, text in pairs}, content)


class Scrape:
    """The parsed text of a scrape."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {}
        for family in text_string_to_metric_families(text):
            assert family.name not in self.families, f"{family.name} is there twice"
            self.families[family.name] = family

    def samples(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and value of every series of a name."""
        for family in self.families.values():
            for sample in family.samples:
                if sample.name == name:
                    yield dict(sample.labels), sample.value

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels; at least one has."""
        found = [value for known, value in self.samples(name) if labels.items() <= known.items()]
        assert found, f"no {name} with {labels}"
        return sum(found)


class World:
    """A node, started by ``Stage``, and what is beside it."""

    def __init__(self, folder: Path, config: Config | None = None) -> None:
        loopback = Address("127.0.0.1", 0)
        plain = config or Config()
        self.config = replace(
            plain,
            base_dir=folder,
            cluster_name="testing",
            node_name="one",
            bind_address=loopback,
            worker=replace(plain.worker, partition_count=PARTITION_COUNT),
            ingress=replace(plain.ingress, bind_address=loopback),
            admin=replace(plain.admin, bind_address=loopback),
            snapshots=replace(
                plain.snapshots, destination=f"file://{folder}/bucket", interval_ms=None
            ),
        )
        self._servers: list[HttpServer] = []
        self.supervisor = Supervisor()
        self.node: Node
        self.info: ReadyInfo

    async def open(self) -> None:
        self.node = Node(self.config, self.supervisor)
        self.info = await self.node.start()

    async def restart(self) -> None:
        """Stop cleanly and start again on the same data."""
        await self.node.stop(is_clean=True)
        await self.open()

    async def close(self) -> None:
        await self.node.stop(is_clean=True)
        for server in self._servers:
            await server.aclose(0)

    async def serve(self, application: Application) -> str:
        """Have an application listen; its URL."""
        server = HttpServer(application, partial(make_server_core, "auto"), SystemClock())
        self._servers.append(server)
        return f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}/"

    async def register(self, url: str) -> None:
        """Register a deployment."""
        document = json.dumps({"uri": url}).encode()
        json_type = {"content-type": "application/json"}
        answer = await ask(self.info.admin_url, "POST", "/deployments", document, json_type)
        assert answer.status in (200, 201), answer

    async def call(self, path: str, body: object = None, **headers: str) -> Answer:
        """Call a handler and wait for its answer."""
        content = b"" if body is None else json.dumps(body).encode()
        typed = {} if body is None else {"content-type": "application/json"}
        return await ask(self.info.ingress_url, "POST", path, content, {**typed, **headers})

    async def query(self, statement: str) -> Answer:
        """A SQL statement, answered as JSON."""
        document = json.dumps({"query": statement}).encode()
        headers = {"content-type": "application/json", "accept": "application/json"}
        return await ask(self.info.admin_url, "POST", "/query", document, headers)

    async def watch(self, path: str, method: str = "GET") -> Answer:
        """A request to the node's own port."""
        return await ask(self.info.node_url, method, path)

    async def scrape(self) -> Scrape:
        """The metrics, now."""
        answer = await self.watch("/metrics")
        assert answer.status == 200, answer
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return Scrape(answer.body.decode())

    async def wait_scrape(self, is_there: Callable[[Scrape], bool]) -> Scrape:
        """Scrape until a condition holds."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not is_there(scrape := await self.scrape()):
                pass
        return scrape


class Stage:
    """Runs scenarios in a world on its own loop."""

    def __init__(self, world: World) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.world = world
        self.run(self.before(world))
        self.run(world.open())

    async def before(self, world: World) -> None:
        """What has to be there before the node is."""

    def run(self, scenario: Coroutine[Any, Any, T]) -> T:
        """Play a scenario to its end."""
        return self._runner.run(scenario)

    def close(self) -> None:
        self.run(self.world.close())
        self._runner.close()
