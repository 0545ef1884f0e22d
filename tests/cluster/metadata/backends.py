"""Every implementation of the metadata port, each in the world it lives in, for one suite."""

import asyncio
import base64
import json
import os
import random
import socket
import subprocess
import time
import urllib.request
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from tests.cluster.metadata.quorum import SimQuorum
from tests.sim.disk import SimDisk
from tests.sim.loop import SimLoop, run

from perdure.cluster.metadata.etcd import EtcdMetadata, EtcdSettings
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.metadata.store import MetadataStore, RegisterSource
from perdure.core.clock import SystemClock
from perdure.storage.disk import OsDisk


class Store(MetadataStore, RegisterSource, Protocol):
    """What the suite asks of a backend."""


Opener = Callable[[], Awaitable[Store]]
"""Opens the same registers again, as another process would."""
Test = Callable[[Opener], Coroutine[Any, Any, None]]


class Backend(Protocol):
    """Runs a test against fresh registers."""

    def run(self, test: Test) -> None: ...


class LocalBackend:
    """Files below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, test: Test) -> None:
        async def open_store() -> Store:
            return LocalMetadata(OsDisk(self._folder))

        asyncio.run(test(open_store))


class SimLocalBackend:
    """Files on a simulated disk."""

    def run(self, test: Test) -> None:
        disk = SimDisk(random.Random(1))

        async def open_store() -> Store:
            return LocalMetadata(disk)

        asyncio.run(test(open_store))


class RaftBackend:
    """Three members and their clients on virtual time and a simulated network.

    Each opening restarts all members from their disks, after a power loss.
    """

    def run(self, test: Test) -> None:
        async def main(loop: SimLoop) -> None:
            quorum = SimQuorum(loop, random.Random(1))
            await quorum.start()
            clients: list[Store] = []

            async def open_store() -> Store:
                if clients:
                    for node in quorum.nodes:
                        await quorum.lose_power(node)
                        await quorum.boot(node)
                client = quorum.client(quorum.nodes[len(clients) % 3])
                clients.append(client)
                return client

            try:
                await test(open_store)
            finally:
                await quorum.aclose()

        run(1, main)


class EtcdBackend:
    """A real etcd of this machine; each test has a prefix of its own."""

    _prefixes = 0

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def run(self, test: Test) -> None:
        EtcdBackend._prefixes += 1
        settings = EtcdSettings(endpoints=[self._endpoint], prefix=f"test {EtcdBackend._prefixes}/")

        async def main() -> None:
            opened: list[EtcdMetadata] = []

            async def open_store() -> Store:
                opened.append(EtcdMetadata(settings, SystemClock()))
                return opened[-1]

            try:
                await test(open_store)
            finally:
                for store in opened:
                    await store.aclose()

        asyncio.run(main())


class EtcdServer:
    """One etcd process on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.endpoint = self._peer = ""

    def start(self) -> None:
        """Start for the first time and wait until it serves."""
        ports = free_ports(2)
        self.endpoint, self._peer = f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
        self.start_again()

    def start_again(self) -> None:
        """Start on the same data and ports and wait until it serves."""
        client, peer = f"http://{self.endpoint}", f"http://{self._peer}"
        log = self._folder / "log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    "etcd",
                    *("--name", "one", "--data-dir", str(self._folder / "data")),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"one={peer}", "--logger", "zap"),
                ],
                stdout=output,
                stderr=output,
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": ""},
            )
        deadline = time.monotonic() + 20
        while b"serving client traffic" not in log.read_bytes():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def control(self, path: str, *, token: str = "", **document: Any) -> Any:
        """One call of etcd's own JSON interface, such as ``auth/enable``."""
        request = urllib.request.Request(
            f"http://{self.endpoint}/v3/{path}",
            json.dumps(document).encode(),
            {"authorization": token} if token else {},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def control_as(self, user: str, user_password: str, path: str, **document: Any) -> None:
        """The same, once a password is wanted."""
        login = self.control("auth/authenticate", name=user, password=user_password)
        self.control(path, token=login["token"], **document)

    def want_password(self, user: str, password: str, prefix: str) -> None:
        """Let only ``root`` and ``user`` in, the latter below ``prefix``."""
        begin = prefix.encode()
        end = begin[:-1] + bytes([begin[-1] + 1])
        keys = {
            "key": base64.b64encode(begin).decode(),
            "range_end": base64.b64encode(end).decode(),
        }
        self.control("auth/role/add", name="mine")
        self.control("auth/role/grant", name="mine", perm={"permType": "READWRITE", **keys})
        self.control("auth/role/add", name="root")
        for name, role in (("root", "root"), (user, "mine")):
            self.control("auth/user/add", name=name, password=password)
            self.control("auth/user/grant", user=name, role=role)
        self.control("auth/enable")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, nor connects from later: below those that systems lend."""
    dice = random.Random(f"{os.getpid()} {time.monotonic_ns()}")
    found: list[int] = []
    while len(found) < count:
        port = dice.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found
