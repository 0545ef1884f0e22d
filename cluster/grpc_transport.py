"""Wires over gRPC: the only module that knows it, imported when a node is part of a cluster.

One method, a stream of raw bytes both ways; what the bytes mean is ours (``core/framing``). A
connection is a channel of its own, so that a lost peer is dialled again at our pace, its name
resolved anew and its certificate files read again.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from perdure.cluster.security import TlsFiles, check_exposure
from perdure.cluster.wires import Wire, WireBroken
from perdure.core import limits
from perdure.core.errors import AddressInUse, InvalidConfiguration

# Failed connections are ours to tell of; the library would write them to stderr.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio

_SERVICE, _METHOD = "perdure.Fabric", "Wire"
_PATH = f"/{_SERVICE}/{_METHOD}"
_KEEPALIVE_MS = 10_000
_COMMON: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", limits.FABRIC_FRAME_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    # Sessions notice silence by themselves; this is for what is left of wires beneath them.
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
    ("grpc.http2.max_pings_without_data", 0),
]
_CHANNEL: list[tuple[str, Any]] = [
    *_COMMON,
    ("grpc.use_local_subchannel_pool", 1),  # no back-off of earlier channels
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]
_SERVER: list[tuple[str, Any]] = [
    *_COMMON,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.max_concurrent_streams", 2 * limits.FABRIC_STREAMS_PER_PEER_MAX),
]
_VACANT = "Connection refused"
# What the library raises once a call is over.
_ENDED = (grpc.RpcError, grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError)


class GrpcWires:
    """Implements ``wires.Wires``. Without ``tls`` nothing is encrypted, and only loopback is
    listened on unless ``is_trusted`` (see ``check_exposure``).
    """

    def __init__(self, bind: str, tls: TlsFiles | None = None, *, is_trusted: bool = False) -> None:
        self._bind = bind
        self._tls = tls
        self._is_trusted = is_trusted
        self._server: grpc.aio.Server | None = None
        self._served: set[_ServedWire] = set()

    def connect(self, address: str) -> "_Connection":
        return _Connection(address, self._tls)

    async def listen(self, accept: Callable[[Wire], None]) -> str:
        check_exposure(self._bind, tls=self._tls, is_trusted=self._is_trusted)

        async def serve(_: AsyncIterator[bytes], context: Any) -> None:
            wire = _ServedWire(context, is_private=self._tls is not None)
            self._served.add(wire)
            accept(wire)
            try:
                await wire.pump()
            finally:
                self._served.discard(wire)

        server = grpc.aio.server(options=_SERVER)
        make_handler: Any = grpc.stream_stream_rpc_method_handler  # generic in what bytes mean
        handler = make_handler(serve)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),)
        )
        try:
            if self._tls is None:
                port = server.add_insecure_port(self._bind)
            else:
                port = server.add_secure_port(self._bind, _server_credentials(self._tls))
        except RuntimeError as failure:
            raise AddressInUse.at(self._bind, failure, "cluster.bind-address") from failure
        await server.start()
        self._server = server
        return f"{self._bind.rpartition(':')[0]}:{port}"

    async def aclose(self) -> None:
        for wire in [*self._served]:
            wire.close()
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)


class _Connection:
    """A channel; implements ``wires.Connection``."""

    def __init__(self, address: str, tls: TlsFiles | None) -> None:
        self._address = address
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None
        self._is_over = False

    async def open(self) -> "_DialledWire":
        if self._is_over:
            raise WireBroken("the connection was ended")
        if self._channel is None:
            self._channel = self._make_channel()
        method: Any = self._channel.stream_stream  # generic, too
        return _DialledWire(method(_PATH)(), self._address, is_private=self._tls is not None)

    async def aclose(self) -> None:
        self._is_over = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _make_channel(self) -> "grpc.aio.Channel":
        if self._tls is None:
            return grpc.aio.insecure_channel(self._address, options=_CHANNEL)
        options = [*_CHANNEL]
        if self._tls.server_name:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        try:
            key, chain, authority = self._tls.read()
        except InvalidConfiguration as failure:
            raise WireBroken(failure.message) from failure
        credentials = grpc.ssl_channel_credentials(authority, key, chain)
        return grpc.aio.secure_channel(self._address, credentials, options=options)


class _DialledWire:
    """A call that this side made; implements ``wires.Wire``."""

    names: tuple[str, ...] | None = None

    def __init__(self, call: Any, remote: str, *, is_private: bool) -> None:
        self._call = call
        self.remote = remote
        self.is_private = is_private
        self._is_closed = False

    async def read(self) -> bytes | None:
        if self._is_closed:
            return None
        try:
            frame = await self._call.read()
        except _ENDED:
            return None
        except asyncio.CancelledError:
            if _is_own_cancellation():
                raise
            return None
        return frame if isinstance(frame, bytes) else None  # else: the mark of the end

    def write_soon(self, frame: bytes) -> bool:
        return False  # the library only has a way that waits

    async def write(self, frame: bytes) -> None:
        if self._is_closed:
            raise WireBroken("it was closed")
        try:
            await self._call.write(frame)
        except _ENDED as failure:
            details = getattr(failure, "details", None)
            reason = str(details() if callable(details) else failure)
            raise WireBroken(reason, is_vacant=_VACANT in reason) from failure
        except asyncio.CancelledError:
            if _is_own_cancellation():
                raise
            raise WireBroken("it was closed") from None

    def close(self) -> None:
        self._is_closed = True
        self._call.cancel()


class _ServedWire:
    """A call that the other side made; implements ``wires.Wire``.

    The library's own task reads, one frame ahead, because only that task can be ended at any time.
    """

    def __init__(self, context: Any, *, is_private: bool) -> None:
        self._context = context
        self._task = asyncio.current_task()
        self.is_private = is_private
        self.remote = _readable(context.peer())
        self.names = _names(context) if is_private else None
        self._frames: deque[bytes] = deque()
        self._is_over = False
        self._arrived: asyncio.Future[None] | None = None
        self._taken: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def pump(self) -> None:
        """Read until the end, and stay until then; ends with the call."""
        try:
            while not self._is_over:
                frame = await self._context.read()
                if not isinstance(frame, bytes):
                    return
                self._frames.append(frame)
                _resolve(self._arrived)
                while self._frames and not self._is_over:
                    self._taken = self._loop.create_future()
                    await self._taken
        except _ENDED:
            return
        except asyncio.CancelledError:
            if not self._is_over:
                raise  # the other side ended the call
            # ``close`` did it. Returning tells the other side; a call whose handler was cancelled
            # would just fall silent.
            if self._task is not None:
                self._task.uncancel()
        finally:
            self._is_over = True
            _resolve(self._arrived)

    async def read(self) -> bytes | None:
        while not self._frames:
            if self._is_over:
                return None
            self._arrived = self._loop.create_future()
            await self._arrived
        frame = self._frames.popleft()
        _resolve(self._taken)
        return frame

    def write_soon(self, frame: bytes) -> bool:
        return False  # the library only has a way that waits

    async def write(self, frame: bytes) -> None:
        if self._is_over:
            raise WireBroken("it has ended")
        try:
            await self._context.write(frame)
        except _ENDED as failure:
            raise WireBroken("it has ended") from failure
        except asyncio.CancelledError:
            if _is_own_cancellation():
                raise
            raise WireBroken("it has ended") from None

    def close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._frames.clear()
            _resolve(self._arrived)
            if self._task is not None:
                self._task.cancel()


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _is_own_cancellation() -> bool:
    """The library raises CancelledError for calls that were cancelled, too."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _readable(peer: str) -> str:
    """``ipv4:127.0.0.1:4711`` as people write it."""
    return peer.partition(":")[2].replace("%5B", "[").replace("%5D", "]")


def _names(context: Any) -> tuple[str, ...]:
    found: list[str] = []
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        for value in context.auth_context().get(key, ()):
            with suppress(UnicodeDecodeError):
                found.append(bytes(value).decode())
    return tuple(dict.fromkeys(found))


def _server_credentials(tls: TlsFiles) -> "grpc.ServerCredentials":
    def configuration() -> "grpc.ServerCertificateConfiguration":
        key, chain, authority = tls.read()
        return grpc.ssl_server_certificate_configuration([(key, chain)], authority)

    stamp = tls.stamp()

    def fetch() -> "grpc.ServerCertificateConfiguration | None":
        """Called by the library, on a thread of its own, before each handshake."""
        nonlocal stamp
        with suppress(InvalidConfiguration):
            current = tls.stamp()
            if current != stamp:
                renewed = configuration()
                stamp = current
                return renewed
        return None  # as before: files that are being replaced don't shut anybody out

    fetcher: Any = fetch  # None stands for "as before"; the library's types don't know
    return grpc.dynamic_ssl_server_credentials(
        configuration(), fetcher, require_client_authentication=True
    )
