"""The way from this node's sequencers to the replicas on other nodes.

What all partitions send in a turn of the loop goes out as one message per node; replicas that
commits don't wait for get theirs, and news of commits, at each tick. When a session to a
node opens, its replicas are asked what they have of the segments written here; when it ends,
sequencers send there no more. Acks come back over the session that carried the stores.
"""

import asyncio
from typing import Protocol

from perdure.cluster.core.log_messages import (
    Hello,
    HelloOk,
    Releases,
    StoreReplies,
    Stores,
)
from perdure.cluster.core.messages import Message, Peer
from perdure.cluster.core.types import (
    Member,
    NodeId,
    Refused,
    Release,
    SegmentKey,
    SegmentParams,
    SegmentState,
    Store,
    StoreAck,
)
from perdure.cluster.transport import Answer, Transport
from perdure.core.clock import Clock
from perdure.core.errors import PerdureError
from perdure.core.limits import LINK_TICK_MS, RECOVERY_REQUEST_MS, RELEASE_DELAY_MS
from perdure.core.limits_log import LINK_TICK_IDLE_MS


class WrittenHere(Protocol):
    """A segment that this node writes, as its links see it."""

    @property
    def params(self) -> SegmentParams: ...

    @property
    def is_behind(self) -> bool: ...

    def is_late(self, node: NodeId) -> bool: ...

    def greet(self, node: NodeId) -> int | None: ...

    def on_hello(
        self, member: Member, is_authoritative: bool, state: SegmentState | None, greeted: int
    ) -> None: ...

    def on_down(self, node: NodeId) -> None: ...

    def on_reply(self, node: NodeId, reply: StoreAck | Refused) -> None: ...

    def on_tick(self) -> None: ...

    def release(self) -> int: ...


class ReplicaLinks:
    """One per node. ``transport`` and ``clock`` are for those who send."""

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self.transport = transport
        self.clock = clock
        self._written: dict[SegmentKey, WrittenHere] = {}
        self._outgoing: dict[NodeId, list[Store]] = {}
        self._unreleased: dict[SegmentKey, WrittenHere] = {}
        self._untold: dict[SegmentKey, WrittenHere] = {}  # to late replicas
        self._release_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._is_tick_slow = False
        self._greetings: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        transport.serve(StoreReplies, self._on_replies)
        transport.on_session(self._on_session)

    def attach(self, log: WrittenHere) -> None:
        """From now on ``log`` is written here."""
        self._written[log.params.key] = log
        for member in log.params.nodeset:
            if self.transport.session(member.node) is not None:
                self._greet(member.node, [log])
        self._hurry()

    def detach(self, log: WrittenHere) -> None:
        """``log`` is over."""
        key = log.params.key
        self._unreleased.pop(key, None)
        self._untold.pop(key, None)
        if self._written.get(key) is log:
            del self._written[key]

    def put(self, node: NodeId, store: Store) -> None:
        """Have it sent with the next ``flush``."""
        self._outgoing.setdefault(node, []).append(store)

    def flush(self) -> None:
        """Send what was put, one message per node."""
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, {}
        self._hurry()
        for node, items in outgoing.items():
            self.transport.send(node, Stores(tuple(items)))
            self.transport.flush(node)  # the replica here may hold the loop up with its sync

    def committed(self, log: WrittenHere) -> None:
        """Replicas are to learn of commits soon, if no store tells them first."""
        self._unreleased[log.params.key] = self._untold[log.params.key] = log
        if self._release_timer is None and not self._is_closed:
            self._release_timer = self._loop.call_later(RELEASE_DELAY_MS / 1000, self.release)

    def release(self, *, to_late: bool = False) -> None:
        """Tell replicas how far commits have come; late ones, too, if it is their turn."""
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None
        logs, self._unreleased = self._unreleased, {}
        if to_late:
            logs, self._untold = self._untold, {}  # all of the others are among them
        items: dict[NodeId, list[Release]] = {}
        for log in logs.values():
            params = log.params
            item = Release(params.ref, log.release())
            for member in params.nodeset:
                if member.node == params.writer.node:
                    continue
                if to_late or not log.is_late(member.node):
                    items.setdefault(member.node, []).append(item)
        for node, releases in items.items():
            self.transport.send(node, Releases(tuple(releases)))

    def tell(self, nodeset: tuple[Member, ...], message: Message) -> None:
        """Say something to all other nodes of a nodeset, once; who is away misses it."""
        for member in nodeset:
            if member.node != self.transport.me.node:
                self.transport.send(member.node, message)

    def close(self) -> None:
        """Stop timers and questions."""
        self._is_closed = True
        for timer in (self._release_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        for task in self._greetings:
            task.cancel()

    # --- Inside ---------------------------------------------------------------------------------

    def _on_session(self, peer: Peer, is_up: bool) -> None:
        node = peer.node
        logs = [log for log in self._written.values() if _is_member(log, node)]
        if not is_up:
            self._outgoing.pop(node, None)
            for log in logs:
                log.on_down(node)
        elif logs:
            self._greet(node, logs)

    def _greet(self, node: NodeId, logs: list[WrittenHere]) -> None:
        asked = [(log, tail) for log in logs if (tail := log.greet(node)) is not None]
        if not asked or self._is_closed:
            return
        task = self._loop.create_task(self._ask(node, asked))
        self._greetings.add(task)
        task.add_done_callback(self._greetings.discard)

    async def _ask(self, node: NodeId, asked: list[tuple[WrittenHere, int]]) -> None:
        session = self.transport.session(node)
        request = Hello(tuple(log.params.ref for log, _ in asked))
        try:
            found: HelloOk = await self.transport.ask(node, request, RECOVERY_REQUEST_MS / 1000)
        except PerdureError:
            if self.transport.session(node) is session and session is not None:
                logs = [log for log, _ in asked]
                self._loop.call_later(LINK_TICK_MS / 1000, self._greet, node, logs)
            return
        if self.transport.session(node) is not session:
            return  # the next session asks again
        for (log, greeted), state in zip(asked, found.states, strict=True):
            log.on_hello(found.member, found.is_authoritative, state, greeted)

    def _on_replies(self, peer: Peer, message: StoreReplies, answer: Answer) -> None:
        replies: list[StoreAck | Refused] = [*message.acks, *message.refusals]
        for reply in replies:
            log = self._written.get((reply.partition, reply.segment))
            if log is not None:
                log.on_reply(peer.node, reply)

    def _tick(self) -> None:
        self._is_tick_slow = False  # who hurries needs no other one
        for log in list(self._written.values()):
            log.on_tick()
        self.flush()
        self.release(to_late=True)
        self._tick_timer = None
        if self._written and not self._is_closed:
            self._is_tick_slow = not any(log.is_behind for log in self._written.values())
            delay_ms = LINK_TICK_IDLE_MS if self._is_tick_slow else LINK_TICK_MS
            self._tick_timer = self._loop.call_later(delay_ms / 1000, self._tick)

    def _hurry(self) -> None:
        """Something waits for the next tick."""
        if self._tick_timer is not None and self._is_tick_slow:
            self._tick_timer.cancel()
            self._tick_timer = None
        if self._tick_timer is None and not self._is_closed:
            self._is_tick_slow = False
            self._tick_timer = self._loop.call_later(LINK_TICK_MS / 1000, self._tick)


def _is_member(log: WrittenHere, node: NodeId) -> bool:
    return any(member.node == node for member in log.params.nodeset)
