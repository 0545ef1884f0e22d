"""A whole node in a background thread, and services of the official SDK in a process beside it."""

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from perdure.core.invariant import InvariantViolation
from perdure.core.tasks import Supervisor
from perdure.node.config.model import Config
from perdure.node.config.values import Address
from perdure.node.server import Node

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[3]

DEADLINE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Answered:
    """A response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class World:
    """``service``: base URL of the SDK service, over HTTP/2 and HTTP/1.1.

    ``configure``: what to change about the node's configuration.
    """

    def __init__(
        self,
        base_dir: Path,
        admin_requests_max: int | None = None,
        configure: Callable[[Config], Config] = lambda config: config,
    ) -> None:
        self._base_dir = base_dir
        self._configure = configure
        self._admin_requests_max = admin_requests_max
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="world", daemon=True)
        self.service, self._serving = serve("tests.node.admin.services:APP")
        self.node: Node
        self.admin_url: str
        self.ingress_url: str

    def start(self) -> None:
        self._thread.start()
        try:
            self._run(self._start())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._run(self.node.stop(is_clean=False))
        self._serving.kill()
        self._serving.wait()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def admin(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answered:
        """One request to the admin port."""
        content = raw if raw is not None else (b"" if body is None else json.dumps(body).encode())
        sent = {"content-type": "application/json"} if headers is None else headers
        return _ask(self.admin_url, method, path, content, sent)

    def send(self, path: str, body: object = None, **headers: str) -> str:
        """Start an invocation through the ingress; its id."""
        content = b"" if body is None else json.dumps(body).encode()
        sent = {**headers} if body is None else {"content-type": "application/json", **headers}
        answered = _ask(self.ingress_url, "POST", path, content, sent)
        assert answered.status in (200, 202), answered
        found: str = answered.json()["invocationId"]
        return found

    def ingress(self, method: str, path: str) -> Answered:
        """One request to the ingress port."""
        return _ask(self.ingress_url, method, path, b"", {})

    def call(self, path: str) -> Answered:
        """Call a handler through the ingress and wait for its answer."""
        answered = _ask(self.ingress_url, "POST", path, b"", {})
        assert answered.status == 200, answered
        return answered

    def describe(self, invocation: str) -> dict[str, Any]:
        """The invocation as the node shows it."""
        answered = self.admin("GET", f"/perdure/invocations/{invocation}")
        assert answered.status == 200, answered
        found: dict[str, Any] = answered.json()
        return found

    def wait_status(self, invocation: str, status: str) -> dict[str, Any]:
        """Wait until the invocation is in a state."""
        return wait_for(lambda: self.describe(invocation), lambda shown: shown["status"] == status)

    def halt(self, partition: int) -> None:
        """Have a partition find its own invariants broken."""

        async def halt() -> None:
            host = self.node._host  # pyright: ignore[reportPrivateUsage]
            assert host is not None
            violation = InvariantViolation("as the test wants", {})
            host.led[partition].processor._halt(violation)  # pyright: ignore[reportPrivateUsage]

        self._run(halt())

    def set_disk_full(self, is_full: bool) -> None:
        """Have the log find no room, or room again."""

        async def set_full() -> None:
            host = self.node._host  # pyright: ignore[reportPrivateUsage]
            assert host is not None
            host.writer.is_full = is_full

        self._run(set_full())

    def begin_stop(self) -> None:
        """Have the node stop, cleanly, while somebody looks on."""
        asyncio.run_coroutine_threadsafe(self.node.stop(is_clean=True), self._loop)

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_SECONDS)

    async def _start(self) -> None:
        loopback = Address("127.0.0.1", 0)
        plain = Config()
        config = replace(
            plain,
            base_dir=self._base_dir,
            bind_address=loopback,
            worker=replace(plain.worker, partition_count=3),
            ingress=replace(plain.ingress, bind_address=loopback),
            admin=replace(
                plain.admin,
                bind_address=loopback,
                concurrent_requests_max=self._admin_requests_max,
            ),
        )
        self.node = Node(self._configure(config), Supervisor())
        info = await self.node.start()
        self.admin_url, self.ingress_url = info.admin_url, info.ingress_url


def serve(
    application: str, environment: dict[str, str] | None = None
) -> tuple[str, subprocess.Popen[bytes]]:
    """An ASGI application in a process of its own, over HTTP/2 and HTTP/1.1; its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        bound = f"fd://{listening.fileno()}"
        process = subprocess.Popen(
            # Without workers: they would outlive a parent that is killed.
            [sys.executable, "-m", "hypercorn", "--workers=0", "-b", bound, application],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            pass_fds=[listening.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return f"http://127.0.0.1:{listening.getsockname()[1]}", process


def wait_for(look: Callable[[], T], is_there: Callable[[T], bool]) -> T:
    """Look until it is there."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        found = look()
        if is_there(found):
            return found
        assert time.monotonic() < deadline, f"still {found}"
        time.sleep(0.005)


def _ask(url: str, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answered:
    host = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=DEADLINE_SECONDS)
    try:
        connection.request(method, path, body=body or None, headers=headers)
        response = connection.getresponse()
        content = response.read()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answered(response.status, fields, content)
    finally:
        connection.close()
