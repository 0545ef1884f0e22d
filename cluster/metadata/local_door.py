"""The local socket between a node and its metadata member: frames, and who may use it.

The socket lies in the member's own folder, which only its user may enter; whoever connects shows
the token that the member wrote beside it when it started. A frame is its length u32, the number of
the question u64, and an encoded question or answer.
"""

import asyncio
import contextlib
import hmac
import os
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from perdure.cluster.metadata.client import DoorClosed
from perdure.cluster.metadata.messages import (
    Answer,
    Ask,
    decode_answer,
    decode_ask,
    encode,
)
from perdure.core.entropy import Entropy
from perdure.core.errors import InvalidConfiguration
from perdure.core.limits import METADATA_MESSAGE_BYTES_MAX
from perdure.core.telemetry import logger

log = logger("metadata")

SOCKET = "socket"
TOKEN = "token"
_TOKEN_BYTES = 32
_HEAD = struct.Struct("<IQ")
_PATH_BYTES_MAX = 100  # the kernel takes 107 bytes, some systems fewer


class LocalServer:
    """Lets the node ask; ``answer`` is called beside each other for questions of a connection."""

    def __init__(self, folder: Path, answer: Callable[[Ask], Awaitable[Answer]]) -> None:
        self._folder = folder
        self._answer = answer
        self._token = b""
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, entropy: Entropy) -> None:
        path = self._folder / SOCKET
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            raise InvalidConfiguration(
                f"{path} is too long for a socket: choose a data directory with a shorter path"
            )
        self._folder.chmod(0o700)
        self._token = entropy.bits(8 * _TOKEN_BYTES).to_bytes(_TOKEN_BYTES, "little")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        token = self._folder / TOKEN
        fresh = token.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(self._token)
        fresh.rename(token)
        self._server = await asyncio.start_unix_server(self._accept, path=path)

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._connections.values():
            writer.transport.abort()
        if self._connections:
            await asyncio.wait(list(self._connections))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        asks: set[asyncio.Task[None]] = set()
        try:
            shown = await reader.readexactly(_TOKEN_BYTES)
            if not hmac.compare_digest(shown, self._token):
                log.warning("metadata.socket.refused")
                return
            while True:
                number, content = await _read(reader)
                ask = asyncio.create_task(self._serve(writer, number, decode_ask(content)))
                asks.add(ask)
                ask.add_done_callback(asks.discard)
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.MsgspecError):
            return
        finally:
            for ask in asks:
                ask.cancel()
            writer.close()
            del self._connections[task]

    async def _serve(self, writer: asyncio.StreamWriter, number: int, ask: Ask) -> None:
        answer = await self._answer(ask)
        _write(writer, number, encode(answer))


class LocalDoor:
    """A node's way to the member beside it; connects when asked, again after each loss."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._connecting = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0

    async def ask(self, ask: Ask, timeout_s: float) -> Answer:
        try:
            async with asyncio.timeout(timeout_s):
                writer = await self._connected()
                self._number += 1
                number = self._number
                answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
                self._waiting[number] = answer
                try:
                    _write(writer, number, encode(ask))
                    return await answer
                finally:
                    self._waiting.pop(number, None)
        except (OSError, TimeoutError) as error:
            raise DoorClosed(f"the metadata member beside this node: {error}") from error

    async def aclose(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                token = (self._folder / TOKEN).read_bytes()
                reader, writer = await asyncio.open_unix_connection(self._folder / SOCKET)
                writer.write(token)
                self._writer = writer
                self._reading = asyncio.create_task(
                    self._read(reader, writer), name="metadata-door"
                )
            return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                number, content = await _read(reader)
                waiting = self._waiting.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(decode_answer(content))
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.MsgspecError):
            pass
        finally:
            self._writer = None
            writer.close()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError("the connection ended"))


def _write(writer: asyncio.StreamWriter, number: int, content: bytes) -> None:
    if not writer.is_closing():
        writer.write(_HEAD.pack(len(content), number) + content)


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    length, number = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    if length > METADATA_MESSAGE_BYTES_MAX:
        raise ConnectionError("a frame beyond the limit")
    return number, await reader.readexactly(length)
