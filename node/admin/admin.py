"""The HTTP application on the admin port: finds the endpoint, runs it, answers.

A request is a task of its own, cancelled when its client goes away. Its errors become answers; a
bug becomes a 500 and a log line; a broken invariant ends the process.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import msgspec

from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import BodyTooLarge, PerdureError, TooManyRequests
from perdure.core.telemetry import logger
from perdure.node.admin import (
    cluster,
    deployments,
    inert,
    inspection,
    invocations,
    logs,
    metadata,
    node,
    pins,
    query,
    services,
    snapshots,
    state,
    voters,
)
from perdure.node.admin.api_document import api_document
from perdure.node.admin.context import (
    AdminOptions,
    ClusterAccess,
    Context,
    Endpoint,
    check_nothing,
)
from perdure.node.admin.elsewhere import Elsewhere, Forward, home_of
from perdure.node.admin.requests import Pieces, Reply, Request, error_reply, json_reply
from perdure.node.admin.routes import Match, Route, Router, WrongMethod
from perdure.node.http.server import Exchange
from perdure.node.invoker.discovery import Discovery
from perdure.node.partition.gateway import Gateway
from perdure.node.partition.snapshotter import Snapshotter
from perdure.node.query.query import Query
from perdure.node.registry.store import RegistryStore

log = logger("admin")

ROUTES: list[Route[Endpoint]] = [
    *node.ROUTES,
    *deployments.ROUTES,
    *services.ROUTES,
    *state.ROUTES,
    *invocations.ROUTES,
    *inspection.ROUTES,
    *pins.ROUTES,
    *query.ROUTES,
    *snapshots.ROUTES,
    *cluster.ROUTES,
    *logs.ROUTES,
    *metadata.ROUTES,
    *voters.ROUTES,
    *inert.ROUTES,
]


async def get_openapi(context: Context, request: Request) -> Reply:
    """The admin API as an OpenAPI document."""
    return json_reply(200, api_document(ROUTES, request.version))


ROUTES.append(Route("GET", "/openapi", get_openapi))


@dataclass(frozen=True, slots=True)
class AdminStatistics:
    """Requests being worked on, and answered so far by class of status (2, 3, 4, 5)."""

    pending: int
    answered: dict[int, int]


class Admin:
    """Answers operators and their tools."""

    def __init__(
        self,
        gateway: Gateway,
        registry: RegistryStore,
        discovery: Discovery,
        query: Query,
        clock: Clock,
        entropy: Entropy,
        options: AdminOptions,
        cluster: ClusterAccess,
        snapshots: Snapshotter | None = None,
        check_serving: Callable[[], None] = check_nothing,
    ) -> None:
        self.body_bytes_max = options.body_bytes_max
        self._context = Context(
            gateway=gateway,
            registry=registry,
            discovery=discovery,
            query=query,
            clock=clock,
            entropy=entropy,
            options=options,
            cluster=cluster,
            snapshots=snapshots,
            check_serving=check_serving,
            elsewhere=Elsewhere(gateway, cluster.members, self._serve),
        )
        self._router: Router[Endpoint] = Router(ROUTES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._answered: dict[int, int] = {}

    def on_exchange(self, exchange: Exchange) -> None:
        """A whole request has arrived."""
        limit = self._context.options.concurrent_requests_max
        if limit is not None and len(self._tasks) >= limit:
            error = TooManyRequests(f"{limit} requests are being worked on: try again shortly")
            self._respond(exchange, error_reply(error, (b"retry-after", b"1")))
            return
        try:
            match = self._router.match(exchange.method, exchange.target)
        except WrongMethod as wrong:
            allow = (b"allow", wrong.allowed.encode())
            self._respond(exchange, error_reply(wrong.error, allow))
            return
        except PerdureError as error:
            self._respond(exchange, error_reply(error))
            return
        task = asyncio.create_task(self._run(exchange, match), name=f"admin {exchange.target}")
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

        def on_gone() -> None:
            task.cancel()

        exchange.on_gone = on_gone

    def on_oversize(self, exchange: Exchange, is_declared: bool) -> None:
        """The body exceeds the limit."""
        error = BodyTooLarge(f"the request body exceeds {self.body_bytes_max} bytes")
        self._respond(exchange, error_reply(error))

    def statistics(self) -> AdminStatistics:
        return AdminStatistics(len(self._tasks), dict(self._answered))

    async def _run(self, exchange: Exchange, match: Match[Endpoint]) -> None:
        asked = _asked(exchange)
        try:
            gateway, elsewhere = self._context.gateway, self._context.elsewhere
            path = exchange.target.partition("?")[0]
            home = home_of(path, match.parameters, match.query, gateway.partition_count)
            if home is None or elsewhere.is_here(home):
                reply = await self._answer(match, asked)
            else:
                reply = await elsewhere.ask(msgspec.structs.replace(asked, partition=home))
        except PerdureError as error:
            reply = error_reply(error)
        if reply.rest is None:
            self._respond(exchange, reply)
        else:
            await self._stream(exchange, reply, reply.rest)

    async def _serve(self, asked: Forward) -> Reply:
        """What another node was asked, or this one about a partition that it leads."""
        return await self._answer(self._router.match(asked.method, asked.target), asked)

    async def _answer(self, match: Match[Endpoint], asked: Forward) -> Reply:
        request = Request(
            method=asked.method,
            version=match.version,
            parameters=match.parameters,
            query=match.query,
            content_type=asked.content_type,
            body=asked.body,
            accept=asked.accept,
        )
        try:
            return await match.endpoint(self._context, request)
        except PerdureError as error:
            return error_reply(error)
        except Exception as error:  # bulkhead: one request's bug must not take the node down
            log.error("admin.request.failed", cause=error, target=asked.target)
            return error_reply(PerdureError("the server failed on this request: see its log"))

    async def _stream(self, exchange: Exchange, reply: Reply, rest: Pieces) -> None:
        """Send a body piece by piece, as fast as the client takes it; cut it if it fails."""
        self._count(reply)
        exchange.begin(reply.status, reply.headers)
        try:
            async with aclosing(rest):
                await _write(exchange, reply.body)
                async for piece in rest:
                    await _write(exchange, piece)
            exchange.end()
        except PerdureError as error:
            log.warning("admin.answer.cut", cause=error, target=exchange.target)
        except Exception as error:  # bulkhead: one request's bug must not take the node down
            log.error("admin.request.failed", cause=error, target=exchange.target)
        finally:
            exchange.cut()  # unless it has ended

    def _count(self, reply: Reply) -> None:
        kind = reply.status // 100
        self._answered[kind] = self._answered.get(kind, 0) + 1

    def _respond(self, exchange: Exchange, reply: Reply) -> None:
        self._count(reply)
        body = b"" if exchange.method == "HEAD" else reply.body
        exchange.respond(reply.status, reply.headers, body)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # only a broken invariant gets here; the loop's handler takes it


def _asked(exchange: Exchange) -> Forward:
    """The request as it would travel."""
    content_type = exchange.header(b"content-type")
    accept = exchange.header(b"accept")
    return Forward(
        0,
        exchange.method,
        exchange.target,
        content_type.decode("latin-1") if content_type is not None else None,
        accept.decode("latin-1") if accept is not None else None,
        exchange.body,
    )


async def _write(exchange: Exchange, data: bytes) -> None:
    """Write when the client has room; its going away cancels the task."""
    while not exchange.is_writable:
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        exchange.on_writable = partial(_resolve, room)
        await room
    exchange.write(data)


def _resolve(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)


__all__ = ["Admin", "AdminOptions", "AdminStatistics"]
