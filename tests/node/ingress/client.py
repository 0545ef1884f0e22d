"""A client of the ingress over real sockets, in either HTTP version, on an independent core."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from perdure.core.entropy import SystemEntropy
from perdure.node.http.client import HttpClient
from perdure.node.http.cores import make_client_core
from perdure.node.http.ports import Headers
from perdure.node.http.stream import Origin, RequestStream, StreamFailure

DEADLINE_SECONDS = 10.0


@dataclass(slots=True)
class Reply:
    """An answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Pending:
    """A request under way."""

    def __init__(self) -> None:
        self.stream: RequestStream
        self._reply = Reply()
        self._done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    async def reply(self) -> Reply:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self._done

    @property
    def is_done(self) -> bool:
        return self._done.done()

    def on_response(self, status: int, headers: Headers) -> None:
        self._reply.status = status
        self._reply.headers = {name.decode(): value.decode() for name, value in headers}

    def on_body(self, data: bytes) -> None:
        self._reply.body += data
        self.stream.consumed(len(data))

    def on_end(self) -> None:
        self._done.set_result(self._reply)

    def on_failed(self, failure: StreamFailure) -> None:
        self._done.set_exception(ConnectionError(failure.message))

    def on_writable(self) -> None:
        pass


class Client:
    """Asks one origin."""

    def __init__(self, port: int, version: str) -> None:
        self._origin = Origin("http", "127.0.0.1", port, version)
        self._client = HttpClient(_make_core, SystemEntropy())

    def start(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
    ) -> Pending:
        """Send a request."""
        pending = Pending()
        fields = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        pending.stream = self._client.open(self._origin, method, target, fields, pending)
        if body:
            pending.stream.write(body)
        pending.stream.end()
        return pending

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
    ) -> Reply:
        """Send a request and wait for the answer."""
        return await self.start(method, target, body, headers).reply()

    async def post(self, target: str, document: object = None, **headers: str) -> Reply:
        """Post a JSON document."""
        fields = [("content-type", "application/json")]
        fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
        return await self.ask("POST", target, json.dumps(document).encode(), fields)

    async def get(self, target: str) -> Reply:
        return await self.ask("GET", target)

    def close(self) -> None:
        """Drop all connections."""
        self._client.close()


def _make_core(version: str, is_secure: bool) -> Any:
    return make_client_core("hyper", version, is_secure)
