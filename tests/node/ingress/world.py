"""A node's partitions with the real ingress in front and a deployment behind, in one process.

Everything is real: log and tables in a temporary directory, sockets on loopback.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from tests.node.ingress.client import Client
from tests.node.ingress.endpoint import DEADLINE_SECONDS, Endpoint
from tests.node.ingress.services import make_registry

from perdure.cluster.metadata.local import LocalMetadata
from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy
from perdure.core.ids import PartitionId
from perdure.core.offload import ThreadOffload
from perdure.node.http.client import HttpClient
from perdure.node.http.cores import make_client_core, make_server_core
from perdure.node.http.ports import Headers
from perdure.node.http.server import Application, HttpServer
from perdure.node.http.stream import RequestStream, StreamListener
from perdure.node.identity import establish
from perdure.node.ingress.ingress import Ingress, IngressOptions
from perdure.node.partition.host import Host
from perdure.node.partition.ports import HostOptions, HostPorts
from perdure.node.registry.effective import Catalogue, Defaults, Route
from perdure.node.registry.model import Registry
from perdure.storage.disk import OsDisk
from perdure.storage.env import Env, LmdbEnv
from perdure.storage.wal import WalSizes

T = TypeVar("T")

PARTITION_COUNT = 2
VERSIONS = ("HTTP/1.1", "HTTP/2.0")
MIB = 1024 * 1024


class Caller:
    """Opens attempts' streams, as a node does."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    def open(
        self, route: Route, path: str, headers: Headers, listener: StreamListener
    ) -> RequestStream:
        return self._client.open(route.origin, "POST", route.target(path), headers, listener)


class World:
    """Host, ingress, deployment, and a client of each HTTP version."""

    def __init__(self, folder: Path, options: IngressOptions) -> None:
        self._folder = folder
        self._options = options
        self._stack = AsyncExitStack()
        self.clients: dict[str, Client] = {}
        self.catalogue = Catalogue(Registry(), Defaults())
        self.host: Host
        self.ingress: Ingress
        self.endpoint: Endpoint
        self.server: HttpServer
        self.port = 0

    async def open(self) -> None:
        """Start everything."""
        self.endpoint = Endpoint()
        _, port = await self._listen(self.endpoint)
        self.adopt(make_registry(f"http://127.0.0.1:{port}/"))
        self.host = await self._open_host()
        self.ingress = Ingress(
            self.host.gateway,
            lambda: self.catalogue,
            SystemClock(),
            SystemEntropy(),
            self._options,
        )
        self.server, self.port = await self._listen(self.ingress)
        for version in VERSIONS:
            client = self.clients[version] = Client(self.port, version)
            self._stack.callback(client.close)

    async def close(self) -> None:
        """Stop everything, last things first."""
        await self._stack.aclose()

    def adopt(self, registry: Registry) -> None:
        """Have this registered."""
        self.catalogue = Catalogue(registry, Defaults())

    async def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Let the loop run until a condition holds."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not is_true():  # noqa: ASYNC110 - a turn of the loop is what is waited for
                await asyncio.sleep(0)

    async def _listen(self, application: Application) -> tuple[HttpServer, int]:
        server = HttpServer(application, partial(make_server_core, "auto"), SystemClock())
        port = await server.listen("127.0.0.1", 0)
        self._stack.push_async_callback(server.aclose, 0.0)
        return server, port

    async def _open_host(self) -> Host:
        disk = OsDisk(self._folder)
        metadata = LocalMetadata(disk)
        entropy = SystemEntropy()
        identity = await establish(disk, metadata, entropy, ("test", "one"), PARTITION_COUNT)
        client = HttpClient(partial(make_client_core, "auto"), entropy)
        self._stack.callback(client.close)

        def open_env(partition: PartitionId) -> Env:
            disk.make_folder(f"partitions/{partition}")
            return LmdbEnv(self._folder / "partitions" / str(partition))

        def on_failure(failure: BaseException) -> None:
            raise failure

        ports = HostPorts(
            disk=disk,
            open_env=open_env,
            metadata=metadata,
            clock=SystemClock(),
            entropy=entropy,
            log_thread=ThreadOffload("log"),
            housekeeping_thread=ThreadOffload("housekeeping"),
            storage_thread=ThreadOffload("storage"),
            caller=Caller(client),
            catalogue=lambda: self.catalogue,
            on_failure=on_failure,
            wal_sizes=WalSizes(first_file=64 * MIB, file=64 * MIB),
        )
        host = Host(identity, ports, HostOptions(slots=100, software="test"))
        await host.open()
        self._stack.push_async_callback(host.close)
        return host


class Stage:
    """Runs scenarios in a world on its own loop."""

    def __init__(self, folder: Path, options: IngressOptions | None = None) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.world = World(folder, options or IngressOptions())
        self.run(self.world.open())

    def run(self, scenario: Coroutine[Any, Any, T]) -> T:
        """Play a scenario to its end."""
        return self._runner.run(scenario)

    def close(self) -> None:
        """Take the world down."""
        self.run(self.world.close())
        self._runner.close()
