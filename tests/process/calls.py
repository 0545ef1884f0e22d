"""HTTP/1.1 requests for tests that kill the other side: one connection each, no pool, no retries.

Written for this, so that a test never trusts the code under test to tell what the wire said.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h11

_READ_BYTES = 64 * 1024


class Unanswered(Exception):
    """The connection was refused or ended before the whole answer: nobody knows what happened."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response. Header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def request(
    port: int,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request to 127.0.0.1 and read the whole answer, however long it takes.

    Raises:
        Unanswered: connecting, sending or reading failed.
    """
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        raise Unanswered(f"connect: {error}") from error
    try:
        return await _exchange(reader, writer, _head(port, method, path, body, headers), body)
    except (OSError, h11.RemoteProtocolError) as error:
        raise Unanswered(f"{method} {path}: {error}") from error
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def post_json(
    port: int, path: str, document: object, headers: Mapping[str, str] | None = None
) -> Answer:
    """POST a JSON document; see ``request``."""
    typed = {"content-type": "application/json", **(headers or {})}
    return await request(port, "POST", path, json.dumps(document).encode(), typed)


def _head(
    port: int, method: str, path: str, body: bytes, headers: Mapping[str, str] | None
) -> h11.Request:
    fields = {"host": f"127.0.0.1:{port}", "connection": "close", **(headers or {})}
    if body or method != "GET":
        fields["content-length"] = str(len(body))
    return h11.Request(method=method, target=path, headers=list(fields.items()))


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: h11.Request, body: bytes
) -> Answer:
    machine = h11.Connection(h11.CLIENT)
    for part in (head, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(machine.send(part) or b"")
    await writer.drain()
    status = 0
    headers: dict[str, str] = {}
    chunks: list[bytes] = []
    while True:
        event = machine.next_event()
        match event:
            case h11.NEED_DATA:
                machine.receive_data(await reader.read(_READ_BYTES))
            case h11.Response():
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            case h11.Data():
                chunks.append(bytes(event.data))
            case h11.EndOfMessage():
                return Answer(status, headers, b"".join(chunks))
            case h11.ConnectionClosed():
                raise h11.RemoteProtocolError("closed before an answer")
            case _:
                pass
