"""Registers in an etcd cluster of the operator's own, over etcd's version 3 API.

A register is a key below a prefix; etcd's version of a key starts at 1 and grows by one with each
write, as ours does, because nothing here deletes keys. A read is linearizable, a write is a
transaction that compares the version. Endpoints are tried in turn; a write that may have been
heard is not sent again: when its answer is lost its outcome is Unknown. Where etcd wants a user, a
token is fetched first, and again when it has expired: a call that was turned down for its token was
not carried out.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from perdure.cluster.metadata.places import PlaceStanding
from perdure.cluster.metadata.store import CasOutcome, Conflict, Unknown, Versioned, check_size
from perdure.core.clock import Clock
from perdure.core.errors import MetadataNotEmpty, MetadataUnavailable
from perdure.core.limits import (
    METADATA_CALL_MS,
    METADATA_MESSAGE_BYTES_MAX,
    METADATA_PAUSE_MS,
    METADATA_TRY_MS,
    METADATA_WATCH_MS,
)
from perdure.core.telemetry import logger
from perdure.proto import etcd_pb2 as pb

log = logger("metadata")

_RANGE = "/etcdserverpb.KV/Range"
_TXN = "/etcdserverpb.KV/Txn"
_WATCH = "/etcdserverpb.Watch/Watch"
_LOGIN = "/etcdserverpb.Auth/Authenticate"
_STATUS = "/etcdserverpb.Maintenance/Status"
# Texts of etcd: the call was refused for its token, before anything was done.
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old")
_LAST = "cluster"  # what is there once this is there can be joined
_NO_LOGIN_NEEDED = "authentication is not enabled"
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", METADATA_MESSAGE_BYTES_MAX),
    ("grpc.enable_retries", 0),  # a write is sent once
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Endpoints are tried in turn by us; a channel needn't wait long before it dials again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSettings:
    """Where etcd is, and who asks. Without ``authority`` the connection is not encrypted."""

    endpoints: Sequence[str]  # host:port
    prefix: str = "perdure/"
    authority: bytes | None = None  # PEM
    certificate: bytes | None = None
    key: bytes | None = None
    user: str | None = None
    password: str = ""


class EtcdMetadata:
    """Implements ``MetadataStore`` and ``RegisterSource``. Belongs to a running loop."""

    def __init__(self, settings: EtcdSettings, clock: Clock) -> None:
        self._settings = settings
        self._prefix = settings.prefix
        self._clock = clock
        self._token: str | None = None
        self._failure = "none was reached"
        self._channels = [_channel(settings, endpoint) for endpoint in settings.endpoints]
        self._endpoint = 0
        self._hints: list[tuple[str, Callable[[str], None]]] = []
        self._watcher: asyncio.Task[None] | None = None

    async def get(self, key: str) -> Versioned | None:
        """The register's value as of now.

        Raises:
            MetadataUnavailable: no endpoint answered in time.
        """
        answer = await self._range(pb.RangeRequest(key=self._full(key)))
        return _versioned(answer.kvs[0]) if answer.kvs else None

    async def scan(self, prefix: str) -> dict[str, Versioned]:
        """All registers below ``prefix`` as of one moment.

        Raises:
            MetadataUnavailable: no endpoint answered in time.
        """
        start = self._full(prefix)
        answer = await self._range(pb.RangeRequest(key=start, range_end=_end_of(start)))
        return {self._short(pair.key): _versioned(pair) for pair in answer.kvs}

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        """Write ``value`` if the version is ``expected`` (None: if absent).

        Raises:
            MetadataTooLarge: nothing was written.
        """
        check_size(key, value)
        name = self._full(key)
        compare = pb.Compare(key=name, version=expected or 0)  # EQUAL, VERSION: the defaults
        write = pb.RequestOp(request_put=pb.PutRequest(key=name, value=value))
        look = pb.RequestOp(request_range=pb.RangeRequest(key=name))
        request = pb.TxnRequest(compare=[compare], success=[write], failure=[look])
        deadline = self._clock.monotonic() + METADATA_CALL_MS / 1000
        while self._clock.monotonic() < deadline:
            try:
                answer = await self._call(_TXN, request, pb.TxnResponse)
            except _LoginFailed:
                await self._try_next()
                continue
            except grpc.RpcError as failure:
                if _was_never_heard(failure):
                    await self._try_next()
                    continue
                self._note(failure)
                return Unknown()
            if answer.succeeded:
                return Versioned((expected or 0) + 1, value)
            found = answer.responses[0].response_range.kvs
            return Conflict(found[0].version if found else None)
        return Unknown()

    def watch(self, prefix: str, hint: Callable[[str], None]) -> Callable[[], None]:
        """Call ``hint(key)`` when a key below ``prefix`` may have changed."""
        entry = (prefix, hint)
        self._hints.append(entry)
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(
                self._listen(), name="metadata-watch"
            )

        def forget() -> None:
            if entry in self._hints:
                self._hints.remove(entry)

        return forget

    # --- For operators ----------------------------------------------------------------------------

    async def fill(self, registers: dict[str, Versioned]) -> None:
        """Put registers below the empty prefix, versions kept; ``cluster`` comes last.

        A version is a count of writes here, so each register is written as often as its version
        says.

        Raises:
            MetadataNotEmpty: there are registers already; also after a fill that was cut short.
            MetadataTooLarge: a register exceeds the limit.
            MetadataUnavailable: etcd doesn't answer; some may have been put.
        """
        for key, found in registers.items():
            check_size(key, found.value)
        if await self.scan(""):
            raise MetadataNotEmpty(
                f"there are keys below {self._prefix!r} already: choose another etcd.prefix, or "
                "delete them with etcdctl if they are of no use"
            )
        for key in sorted(registers, key=lambda key: (key == _LAST, key)):
            for version in range(registers[key].version):
                outcome = await self.cas(key, version or None, registers[key].value)
                if not isinstance(outcome, Versioned):
                    raise MetadataUnavailable(
                        f"{key} was not written: {self._failure}. What is below {self._prefix!r} "
                        "is not whole: delete it before you try again"
                    )

    async def look_each(self) -> list[PlaceStanding]:
        """How each endpoint is."""
        return list(await asyncio.gather(*map(self._look, range(len(self._channels)))))

    async def aclose(self) -> None:
        """Stop watching and close the connections."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        for channel in self._channels:
            await channel.close()

    # --- Inside -----------------------------------------------------------------------------------

    def _full(self, key: str) -> bytes:
        return (self._prefix + key).encode()

    def _short(self, name: bytes) -> str:
        return name.decode()[len(self._prefix) :]

    async def _range(self, request: Any) -> Any:
        deadline = self._clock.monotonic() + METADATA_CALL_MS / 1000
        while self._clock.monotonic() < deadline:
            try:
                return await self._call(_RANGE, request, pb.RangeResponse)
            except (grpc.RpcError, _LoginFailed) as failure:
                self._note(failure)
            await self._try_next()
        raise MetadataUnavailable(f"no etcd endpoint answered in time: {self._failure}")

    async def _call(self, method: str, request: Any, kind: Any) -> Any:
        """One call at the present endpoint; again with a new token if ours is not taken."""
        token = await self._log_in()
        try:
            return await self._call_at(self._endpoint, method, request, kind, token)
        except grpc.RpcError as failure:
            if token is None or not _is_stale(failure):
                raise
            if self._token == token:
                self._token = None
        return await self._call_at(self._endpoint, method, request, kind, await self._log_in())

    async def _call_at(
        self, endpoint: int, method: str, request: Any, kind: Any, token: str | None
    ) -> Any:
        channel = self._channels[endpoint % len(self._channels)]
        call = channel.unary_unary(
            method,
            request_serializer=kind_bytes,
            response_deserializer=kind.FromString,
        )
        return await call(request, timeout=2 * METADATA_TRY_MS / 1000, metadata=_sign(token))

    async def _log_in(self) -> str | None:
        """The token to call with; None where there is no user.

        Raises:
            _LoginFailed: there is none to be had; nothing was sent but the password.
        """
        user = self._settings.user
        if user is None or self._token is not None:
            return self._token
        request = pb.AuthenticateRequest(name=user, password=self._settings.password)
        try:
            answer = await self._call_at(
                self._endpoint, _LOGIN, request, pb.AuthenticateResponse, None
            )
        except grpc.RpcError as failure:
            if _NO_LOGIN_NEEDED in _details(failure):
                return None
            self._note(failure)
            raise _LoginFailed(f"etcd doesn't let {user!r} in: {_details(failure)}") from failure
        self._token = answer.token
        return self._token

    async def _look(self, number: int) -> PlaceStanding:
        endpoint = self._settings.endpoints[number]
        try:
            token = await self._log_in()
            found = await self._call_at(
                number, _STATUS, pb.StatusRequest(), pb.StatusResponse, token
            )
        except (grpc.RpcError, _LoginFailed) as failure:
            return PlaceStanding(place=endpoint, failure=_details(failure))
        return PlaceStanding(
            place=endpoint,
            is_leader=bool(found.leader) and found.leader == found.header.member_id,
            has_leader=bool(found.leader),
            term=found.raft_term,
            detail=f"etcd {found.version}, {found.db_size} bytes",
        )

    def _note(self, failure: Exception) -> None:
        self._failure = _details(failure)

    async def _try_next(self) -> None:
        self._endpoint += 1
        await asyncio.sleep(METADATA_PAUSE_MS / 1000)

    async def _listen(self) -> None:
        """Follow all keys below our prefix; after each loss hint at every key there is."""
        start = self._prefix.encode()
        create = pb.WatchCreateRequest(key=start, range_end=_end_of(start))
        while True:
            with suppress(grpc.RpcError, _LoginFailed, MetadataUnavailable, TimeoutError):
                token = await self._log_in()
                channel = self._channels[self._endpoint % len(self._channels)]
                call = channel.stream_stream(
                    _WATCH,
                    request_serializer=kind_bytes,
                    response_deserializer=pb.WatchResponse.FromString,
                )(_one(pb.WatchRequest(create_request=create)), metadata=_sign(token))
                try:
                    await self._follow(call)
                finally:
                    call.cancel()
            await self._try_next()

    async def _follow(self, call: Any) -> None:
        """Hint at what one watch tells, until it ends; one that never begins is given up."""
        async with asyncio.timeout(2 * METADATA_TRY_MS / 1000):
            answer = await call.read()
        for key in await self.scan(""):  # the watch is on: what changed before it is asked for
            self._tell(key)
        while answer is not grpc.aio.EOF and not answer.canceled:
            for event in answer.events:
                self._tell(self._short(event.kv.key))
            # After a silence the watch is made anew: a stream can hang without an end.
            async with asyncio.timeout(METADATA_WATCH_MS / 1000):
                answer = await call.read()

    def _tell(self, key: str) -> None:
        for prefix, hint in list(self._hints):
            if key.startswith(prefix):
                hint(key)


class _LoginFailed(Exception):
    """No token is to be had now; what was to be called was not."""


def kind_bytes(message: Any) -> bytes:
    """A protobuf message as bytes."""
    content: bytes = message.SerializeToString()
    return content


async def _one(request: Any) -> AsyncIterator[Any]:
    """A stream of requests that stays open after its only one."""
    yield request
    await asyncio.Event().wait()


def _channel(settings: EtcdSettings, endpoint: str) -> "grpc.aio.Channel":
    if settings.authority is None:
        return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        settings.authority, settings.key, settings.certificate
    )
    return grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)


def _versioned(pair: Any) -> Versioned:
    return Versioned(pair.version, pair.value)


def _end_of(prefix: bytes) -> bytes:
    """The first key behind all that start with ``prefix``."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _sign(token: str | None) -> "tuple[tuple[str, str], ...] | None":
    return (("token", token),) if token is not None else None


def _details(failure: Exception) -> str:
    if isinstance(failure, grpc.aio.AioRpcError):
        return failure.details() or failure.code().name
    return str(failure)


def _is_stale(failure: grpc.RpcError) -> bool:
    return any(text in _details(failure) for text in _STALE_TOKEN)


def _was_never_heard(failure: grpc.RpcError) -> bool:
    """Whether the request surely didn't reach a server: no connection came about."""
    if not isinstance(failure, grpc.aio.AioRpcError):
        return False
    is_away = failure.code() == grpc.StatusCode.UNAVAILABLE
    return is_away and "failed to connect" in _details(failure)
