"""The port between the nodes of a cluster: sessions that carry messages in order, at most once.

**Sessions.** A node dials every other member of its directory and keeps one session to each, over
which it says and asks; the other way has a session of its own. What the receiver answers comes back
over the session that asked.

**What holds**, per session and direction: messages arrive in the order in which they were given to
``send`` and ``ask``, each at most once, none damaged, all from the process that the session names.
When a session ends, all that is in flight is dropped, on both sides, for good: a later session
starts empty, and the two sides may learn of the end at different times. Nothing is sent twice.

**What doesn't.** A message that was sent may never arrive, and nobody is told which: whoever needs
to know asks. Sessions of the two directions are not ordered against each other.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from perdure.cluster.core.messages import Message, Peer, Request
from perdure.cluster.core.types import NodeId
from perdure.core.errors import PerdureError

M = TypeVar("M", bound=Message)
R = TypeVar("R")
Q = TypeVar("Q", bound=Request[Any])

Answer = Callable[[Message | PerdureError], None]
"""Says something back over the session on which a message came; nothing happens once it ended.

For a request: the answer, once; later calls do nothing. For other messages: a message of its own,
any number of times, which the other side handles as if it had been sent to it.
"""

Handler = Callable[[Peer, M, Answer], None]
"""Takes a message on the event loop, in order, and returns without waiting.

The answer may be given later: nothing else waits for it. A ``PerdureError`` that is raised answers
a request; any other exception is a bug, which is logged and leaves the request without an answer.
"""

StreamHandler = Callable[[Peer, Q], AsyncIterator[Message]]
"""Produces what a stream delivers, as fast as it is taken; closed when nobody takes it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a member listens, and who it was when that was written down (None: not known)."""

    address: str  # host:port
    identity: Peer | None = None


Directory = Mapping[NodeId, Place]
"""The members. Only they may have sessions; a node may find itself in it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Two nodes that don't talk, as of the last time they tried. ``node``: whom this one dialled;
    None: somebody dialled this one. ``times``: since it began."""

    address: str
    node: NodeId | None
    code: str
    reason: str
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportStatistics:
    """For metrics. Counts grow from the start; the rest is as of now."""

    sessions_out: int  # that this node dialled and that are up
    sessions_in: int  # that others dialled
    members: int  # others in the directory
    streams: int  # being delivered, either way
    asks_waiting: int
    queued_bytes: int  # not given to the network yet
    messages_sent: int
    messages_received: int
    frames_sent: int  # a frame carries the messages of a turn of the loop
    bytes_sent: int
    bytes_received: int
    sessions_opened: int  # beyond the first per peer: reconnects
    sessions_lost: int
    refused_in: int  # hellos that were turned down
    refused_out: int  # times this node was turned down
    slow_cut: int  # sessions ended because a peer didn't read
    refusals: tuple[Refusal, ...] = ()  # of the last moments


class Transport(Protocol):
    """One node's door to the others. All of it belongs to the event loop it was made on."""

    @property
    def me(self) -> Peer:
        """Who this process is to the others."""
        ...

    def set_directory(self, members: Directory) -> None:
        """From now on these are the members: others lose their sessions, new ones are dialled."""
        ...

    def session(self, to: NodeId) -> Peer | None:
        """Who is at the other end of the session to ``to``; None when there is none."""
        ...

    def queued_bytes(self, to: NodeId) -> int:
        """What waits to be taken by the network; callers that can wait keep it small."""
        ...

    def send(self, to: NodeId, message: Message) -> bool:
        """Send one way. False: there is no session, and the message is dropped.

        It never waits. A queue beyond ``limits.FABRIC_QUEUE_BYTES_MAX`` ends the session: a peer
        that doesn't read is as good as gone.
        """
        ...

    def flush(self, to: NodeId) -> None:
        """What was said to ``to`` leaves before this turn of the loop is over, if the network takes
        it: for who is about to keep the loop busy."""
        ...

    async def ask(self, to: NodeId, request: Request[R], timeout_s: float) -> R:
        """Send a request and wait for its answer. Cancelling stops the waiting, not the request.

        It first waits, within the timeout, while the queue is full: a request is in order from when
        it is queued. To queue at once, in the order of calls, keep ``queued_bytes`` small.

        Raises:
            Unreachable: it was never sent: no session, or not taken in time.
            AnswerLost: it was sent; whether it was acted on is not known (an OutcomeUnknown).
            PerdureError: what the other side answered.
        """
        ...

    def stream(self, to: NodeId, request: Request[R]) -> AsyncIterator[R]:
        """Ask for any number of answers, produced as they are taken. Close it to stop early.

        Raises (while iterating):
            Unreachable: there is no session, or it ended before the stream did.
            PerdureError: what the other side answered.
        """
        ...

    async def ask_at(self, address: str, request: Request[R], timeout_s: float) -> R:
        """Ask whoever listens there, over a session of its own; for those who join a cluster.

        Raises: as ``ask``.
        """
        ...

    def serve(self, kind: type[M], handler: Handler[M], *, guests: bool = False) -> None:
        """Let ``handler`` take messages of a kind, from guests too if ``guests`` says so."""
        ...

    def serve_stream(self, kind: type[Q], handler: StreamHandler[Q]) -> None:
        """Let ``handler`` answer streams asked for with a kind of request."""
        ...

    def on_session(self, callback: Callable[[Peer, bool], None]) -> None:
        """Be told when a session that this node dialled is up (True) or gone (False).

        Each up has its down before the next up of the node. What was asked over a session fails
        after its down was told.
        """
        ...

    def on_vacant(self, callback: Callable[[NodeId], None]) -> None:
        """Be told when a member was dialled and its machine said that no process listens there."""
        ...

    def on_refused(self, callback: Callable[[NodeId, PerdureError], None]) -> None:
        """Be told what a member said when it turned this node down, each time."""
        ...

    def statistics(self) -> TransportStatistics:
        """Figures for metrics."""
        ...

    async def aclose(self) -> None:
        """End all sessions and streams, stop listening. What waits fails. Idempotent."""
        ...
