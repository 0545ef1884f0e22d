"""Requests about what another node leads: the admin API there answers them, in our name.

An invocation, or the state of an object, belongs to one partition; only its leader has it as it is
now. Which partition a request is about is told by its path, or by ``partition`` in its query. What
the leader says is passed on as it is; while there is none, the request is tried again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

import msgspec

from perdure.cluster.answers import LateAnswers
from perdure.cluster.core.messages import Message, Peer, Request
from perdure.cluster.transport import Answer
from perdure.core.errors import (
    BadRequest,
    OutcomeUnknown,
    PartitionUnavailable,
    Unprocessable,
    Unreachable,
)
from perdure.core.hashing import key_partition_key
from perdure.core.ids import PartitionId, partition_key_of, partition_of
from perdure.core.limits import (
    ADMIN_FORWARD_BYTES_MAX,
    ADMIN_FORWARD_MS,
    ROUTE_PATIENCE_MS,
    ROUTE_RETRY_MS_INITIAL,
    ROUTE_RETRY_MS_MAX,
)
from perdure.node.admin.requests import Reply, parse_invocation
from perdure.node.partition.gateway import Gateway
from perdure.node.partition.members import Members

PARTITION = "partition"
_INVOCATIONS = ("invocations", "perdure/invocations")
_STATE = "perdure/state"
_IN_PARTS = ("perdure/invocations", "perdure/deployments")


class Forwarded(Message, frozen=True, tag=0x0480):
    """A whole response."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Forward(Request[Forwarded], frozen=True, tag=0x0481):
    """A request about a partition, if the receiver leads it."""

    partition: int
    method: str
    target: str
    content_type: str | None
    accept: str | None
    body: bytes


Serve = Callable[[Forward], Awaitable[Reply]]
"""Answers a request here."""


def home_of(
    path: str, parameters: dict[str, str], query: dict[str, str], count: int
) -> PartitionId | None:
    """The partition that a request is about; None: no single one.

    Raises:
        BadRequest: it names what can't be.
    """
    place = path.strip("/")
    if "id" in parameters and any(f"{each}/" in f"{place}/" for each in _INVOCATIONS):
        return partition_of(partition_key_of(parse_invocation(parameters["id"])), count)
    if PARTITION in query and any(each in place for each in _IN_PARTS):
        text = query[PARTITION]
        if not (text.isascii() and text.isdecimal() and len(text) < 6 and int(text) < count):
            raise BadRequest(f"partition {text!r}: expected a number below {count}")
        return PartitionId(int(text))
    if "key" in parameters and f"{_STATE}/" in f"{place}/":
        return partition_of(key_partition_key(parameters["key"]), count)
    return None


class Elsewhere:
    """The way to the leaders, and what they ask of this node. ``serve`` answers here."""

    def __init__(self, gateway: Gateway, members: Members | None, serve: Serve) -> None:
        self._gateway = gateway
        self._members = members
        self._serve = serve
        self._answers = LateAnswers()
        self._me = members.me if members is not None else None
        if members is not None:
            members.transport.serve(Forward, self._take)

    def is_here(self, partition: PartitionId) -> bool:
        """Whether this node answers for a partition."""
        return self._members is None or self._gateway.leads(partition)

    async def ask(self, request: Forward) -> Reply:
        """The leader's answer, for as long as patience lasts.

        Raises:
            PerdureError: there is none; what changes something may have been done all the same.
        """
        loop = asyncio.get_running_loop()
        partition = PartitionId(request.partition)
        gives_up_at = loop.time() + ROUTE_PATIENCE_MS / 1000
        pause_ms = ROUTE_RETRY_MS_INITIAL
        while True:
            try:
                if self.is_here(partition) or self._members is None:
                    return await self._serve(request)
                node = self._members.leader_of(partition)
                found = await self._members.transport.ask(node, request, ADMIN_FORWARD_MS / 1000)
                return Reply(found.status, list(found.headers), found.body)
            except (PartitionUnavailable, Unreachable, OutcomeUnknown) as error:
                may_be_done = isinstance(error, OutcomeUnknown) and request.method != "GET"
                if may_be_done or loop.time() >= gives_up_at:
                    raise
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, ROUTE_RETRY_MS_MAX)

    async def ask_part(self, partition: int, path: str, query: dict[str, str]) -> dict[str, object]:
        """The document that a partition's leader has for a path.

        Raises:
            PerdureError: there is none; or another answer.
        """
        target = f"{path}?{urlencode({**query, PARTITION: str(partition)})}"
        reply = await self.ask(Forward(partition, "GET", target, None, None, b""))
        if reply.status != 200:
            told = msgspec.json.decode(reply.body, type=_Told)
            raise PartitionUnavailable(f"the leader of partition {partition}: {told.message}")
        document: dict[str, object] = msgspec.json.decode(reply.body)
        return document

    def _take(self, _: Peer, request: Forward, answer: Answer) -> None:
        if not self._gateway.leads(PartitionId(request.partition)):
            raise PartitionUnavailable(
                f"partition {request.partition} is not led by this node (any more): ask the new "
                "leader"
            )

        async def serve() -> Forwarded:
            reply = await self._serve(request)
            if len(reply.body) > ADMIN_FORWARD_BYTES_MAX:
                raise Unprocessable(
                    f"the answer takes {len(reply.body)} bytes, and nodes pass on "
                    f"{ADMIN_FORWARD_BYTES_MAX} at most: ask for less (limit=1), or ask node "
                    f"{self._me} itself, which leads partition {request.partition}"
                )
            return Forwarded(reply.status, tuple(reply.headers), reply.body)

        self._answers.start(serve(), answer)


class _Told(msgspec.Struct):
    message: str = ""
