"""Wires over plain TCP, a connection each: for nodes that have a secret or a network of their own.

A frame is its length and its bytes. A frame over gRPC costs several times more, in Python and in
waking the library's thread; where certificates are asked for, that is what is used (``wiring``).
What the bytes mean, and that they come from a member unchanged, is ours (``core/framing``).
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import cast

from perdure.cluster.security import check_exposure
from perdure.cluster.wires import Wire, WireBroken
from perdure.core import limits
from perdure.core.errors import AddressInUse

_LENGTH = Struct("<I")


class TcpWires:
    """Implements ``wires.Wires``. Only loopback is listened on unless ``is_trusted`` (see
    ``check_exposure``)."""

    def __init__(self, bind: str, *, is_trusted: bool = False) -> None:
        self._bind = bind
        self._is_trusted = is_trusted
        self._server: asyncio.Server | None = None
        self._served: set[_TcpWire] = set()

    def connect(self, address: str) -> "_Connection":
        return _Connection(address)

    async def listen(self, accept: Callable[[Wire], None]) -> str:
        check_exposure(self._bind, tls=None, is_trusted=self._is_trusted)
        host, _, port = self._bind.rpartition(":")

        def make() -> _TcpWire:
            wire = _TcpWire(self._served)
            wire.accept = accept
            return wire

        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(make, host.strip("[]"), int(port))
        except OSError as failure:
            raise AddressInUse.at(self._bind, failure, "cluster.bind-address") from failure
        self._server = server
        return f"{host}:{server.sockets[0].getsockname()[1]}"

    async def aclose(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await _close_all(self._served)


class _Connection:
    """All wires to one address; implements ``wires.Connection``."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._wires: set[_TcpWire] = set()
        self._is_over = False

    async def open(self) -> "_TcpWire":
        host, _, port = self._address.rpartition(":")
        loop = asyncio.get_running_loop()
        wire = _TcpWire(self._wires)
        try:
            await loop.create_connection(lambda: wire, host.strip("[]"), int(port))
        except asyncio.CancelledError:
            wire.give_up()
            raise
        except (OSError, ValueError) as failure:
            code = failure.errno if isinstance(failure, OSError) else None
            is_vacant = code == errno.ECONNREFUSED
            raise WireBroken(f"{self._address}: {failure}", is_vacant=is_vacant) from failure
        if self._is_over:
            wire.close()
            raise WireBroken("the connection was ended")
        return wire

    async def aclose(self) -> None:
        self._is_over = True
        await _close_all(self._wires)


class _TcpWire(asyncio.Protocol):
    """One TCP connection; implements ``wires.Wire``."""

    names: tuple[str, ...] | None = None
    is_private = False

    def __init__(self, siblings: "set[_TcpWire]") -> None:
        self.accept: Callable[[Wire], None] | None = None
        self.remote = ""
        self._siblings = siblings
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames: deque[bytes] = deque()
        self._held_bytes = 0  # of frames
        self._rest = bytearray()  # of a frame that isn't here in whole
        self._is_over = False
        self._is_reading = True
        self._arrived: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self.gone: asyncio.Future[None] = self._loop.create_future()  # nothing of it is left

    # --- The wire -------------------------------------------------------------------------------

    async def read(self) -> bytes | None:
        while not self._frames:
            if self._is_over:
                return None
            self._arrived = self._loop.create_future()
            await self._arrived
        frame = self._frames.popleft()
        self._held_bytes -= len(frame)
        if not self._is_reading and self._held_bytes <= limits.FABRIC_READ_AHEAD_BYTES_MAX:
            self._is_reading = True
            if self._transport is not None and not self._is_over:
                self._transport.resume_reading()
        return frame

    def write_soon(self, frame: bytes) -> bool:
        transport = self._transport
        if self._is_over or transport is None or self._drained is not None:
            return False
        transport.writelines((_LENGTH.pack(len(frame)), frame))
        return True

    async def write(self, frame: bytes) -> None:
        transport = self._transport
        if self._is_over or transport is None:
            raise WireBroken("it has ended")
        transport.writelines((_LENGTH.pack(len(frame)), frame))
        while self._drained is not None:
            await asyncio.shield(self._drained)
        if self._is_over:
            raise WireBroken("it has ended")

    def close(self) -> None:
        if self._is_over:
            return
        self._end()
        transport = self._transport
        if transport is not None:
            # What was written may still leave; but nobody waits for a peer that doesn't read.
            transport.close()
            delay_s = limits.FABRIC_LINGER_MS / 1000
            self._lingering = self._loop.call_later(delay_s, transport.abort)

    def give_up(self) -> None:
        """Nobody dials any more: the loop may never say that the connection was lost."""
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    # --- What the loop says ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        if self._is_over:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(limits.FABRIC_FRAME_BYTES_MAX)
        self._siblings.add(self)
        peer = transport.get_extra_info("peername")
        self.remote = f"{peer[0]}:{peer[1]}" if peer else ""
        if self.accept is not None:
            self.accept(self)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        if self._rest:
            self._rest += data
            data = bytes(self._rest) if self._is_whole() else b""
        at, end = 0, len(data)
        while end - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            if length > limits.FABRIC_FRAME_BYTES_MAX:
                self.close()
                return
            start = at + _LENGTH.size
            if end - start < length:
                break
            at = start + length
            self._frames.append(data[start:at])
            self._held_bytes += length
        if end:
            self._rest = bytearray(data[at:]) if at < end else bytearray()
        if self._frames:
            _resolve(self._arrived)
        if self._held_bytes > limits.FABRIC_READ_AHEAD_BYTES_MAX and self._is_reading:
            self._is_reading = False
            assert self._transport is not None
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        _resolve(drained)

    def connection_lost(self, exc: Exception | None) -> None:
        self._siblings.discard(self)
        self._transport = None
        self._end()
        if self._lingering is not None:
            self._lingering.cancel()
        _resolve(self.gone)

    # --- Inside ---------------------------------------------------------------------------------

    def _is_whole(self) -> bool:
        """Whether the frame that was begun is here, or can't be one."""
        rest = self._rest
        if len(rest) < _LENGTH.size:
            return False
        length: int = _LENGTH.unpack_from(rest)[0]
        return length > limits.FABRIC_FRAME_BYTES_MAX or len(rest) - _LENGTH.size >= length

    def _end(self) -> None:
        self._is_over = True
        self._rest.clear()
        _resolve(self._arrived)
        drained, self._drained = self._drained, None
        _resolve(drained)


async def _close_all(wires: set[_TcpWire]) -> None:
    closing = [wire.gone for wire in wires]
    for wire in [*wires]:
        wire.close()
    if closing:
        await asyncio.wait(closing)


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
