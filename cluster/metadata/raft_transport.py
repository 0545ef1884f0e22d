"""What stands between the Raft library and the wire: barriers, tags and the filter of its messages.

The library trusts what it must not. Each rule below closes a hole through which it loses what it
has acknowledged, or diverges (DESIGN.md names them); a rule is one method, so that a test can take
one away and see the damage. The library's method names are its own.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from perdure.cluster.metadata.raft_links import PeerConnection
from perdure.cluster.metadata.raft_messages import (
    Append,
    DumpPiece,
    Forward,
    Heartbeat,
    PeerMessage,
    Position,
    RequestVote,
    from_library,
    to_library,
)
from perdure.core.clock import Clock
from perdure.core.invariant import invariant


class Inside(Protocol):
    """What the rules must know of the library's state."""

    def term(self) -> int: ...
    def commit_index(self) -> int: ...
    def applied_index(self) -> int: ...
    def match_index(self, peer: int) -> int:
        """How far a peer is known to hold our log, as a leader."""
        ...

    def entry_term(self, index: int) -> int | None:
        """The term of an entry of the log; None when there is none at ``index``."""
        ...

    def dump_end(self) -> tuple[int, int]: ...
    def cancel_dump(self, peer: int) -> None: ...


class MessageFilter:
    """The rules, on messages of one member."""

    def __init__(self, inside: Inside, clock: Clock, stickiness_s: float) -> None:
        self._inside = inside
        self._clock = clock
        self._stickiness_s = stickiness_s
        self._leader_heard_at = -stickiness_s

    def outgoing(self, message: dict[str, Any]) -> PeerMessage:
        """Tag what leaves."""
        return from_library(message, self._inside.term(), self._inside.dump_end())

    def incoming(self, peer: int, message: PeerMessage) -> dict[str, Any] | None:
        """What the library is told of a peer's message; None: nothing."""
        match message:
            case Position():
                if self._is_of_another_term(message) or self._is_stale_reset(peer, message):
                    return None
            case RequestVote():
                if self._has_a_leader():
                    return None
            case Append():
                self._note_leader(message.term)
                self._check_applied(message)
                message = self._without_known(message)
            case DumpPiece():
                self._note_leader(message.term)
                if self._is_dump_known(message):
                    message = Heartbeat(message.term, message.commit_index)
                message = self._clamp(message)
            case Heartbeat():
                self._note_leader(message.term)
                message = self._clamp(message)
            case Forward(command, _):
                if command[:1] != b"\0":
                    return None  # an entry of a kind that members don't forward
            case _:
                pass
        return to_library(message)

    # --- The rules ------------------------------------------------------------------------------

    def _is_of_another_term(self, answer: Position) -> bool:
        """An answer counts only in the term in which it was given."""
        return answer.term != self._inside.term()

    def _is_stale_reset(self, peer: int, answer: Position) -> bool:
        """A peer never asks for what it is known to hold: that question is old."""
        return answer.reset and answer.next_index <= self._inside.match_index(peer)

    def _clamp(self, message: DumpPiece | Heartbeat) -> DumpPiece | Heartbeat:
        """Without a check of the entry before, nothing new may count as committed."""
        commit_index = min(message.commit_index, self._inside.commit_index())
        return msgspec.structs.replace(message, commit_index=commit_index)

    def _is_dump_known(self, piece: DumpPiece) -> bool:
        """A dump may only lead forward, and never replaces a log that already holds its end."""
        newest = max(self._inside.commit_index(), self._inside.applied_index())
        return (
            piece.last_index <= newest
            or self._inside.entry_term(piece.last_index) == piece.last_term
        )

    def _has_a_leader(self) -> bool:
        """While a leader is heard nobody else is elected: a lost link deposes no one."""
        return self._clock.monotonic() - self._leader_heard_at < self._stickiness_s

    def _check_applied(self, message: Append) -> None:
        """What was applied is never contradicted or cut off: stop instead."""
        if message.term < self._inside.term() or message.previous_index is None:
            return
        if self._inside.entry_term(message.previous_index) != message.previous_term:
            return  # the library refuses it
        applied = self._inside.applied_index()
        end = message.previous_index + len(message.entries)
        invariant(end >= applied, "an append cuts applied entries off", end=end, applied=applied)
        for _, index, term in message.entries:
            held = self._inside.entry_term(index) if index <= applied else None
            invariant(
                held is None or held == term, "an append contradicts an applied entry", index=index
            )

    def _without_known(self, message: Append) -> Append:
        """Leave out what the log holds already: the library would cut it off and write it again."""
        if message.previous_index is None:
            return message
        if self._inside.entry_term(message.previous_index) != message.previous_term:
            return message
        known = 0
        for _, index, term in message.entries:
            if self._inside.entry_term(index) != term:
                break
            known += 1
        if not known:
            return message
        _, index, term = message.entries[known - 1]
        return msgspec.structs.replace(
            message, previous_index=index, previous_term=term, entries=message.entries[known:]
        )

    def _note_leader(self, term: int) -> None:
        if term >= self._inside.term():
            self._leader_heard_at = self._clock.monotonic()


class LibraryTransport:
    """The library's transport: a barrier, the filter, then the connection with the peer."""

    ready = True

    def __init__(
        self,
        barrier: Callable[[], None],
        connections: Mapping[int, PeerConnection],
    ) -> None:
        self._barrier = barrier
        self._connections = connections
        self.filter: MessageFilter | None = None
        self.on_message: Callable[[Any, dict[str, Any]], None] | None = None
        self.on_connected: Callable[[Any], None] | None = None
        self.on_disconnected: Callable[[Any], None] | None = None

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        """Term, vote and entries are durable before any message that follows from them."""
        self._barrier()
        assert self.filter is not None
        connection = self._connections[node.id]
        if not connection.is_connected:
            return False
        connection.send(self.filter.outgoing(message))
        return True

    def setOnMessageReceivedCallback(self, callback: Any) -> None:
        self.on_message = callback

    def setOnNodeConnectedCallback(self, callback: Any) -> None:
        self.on_connected = callback

    def setOnNodeDisconnectedCallback(self, callback: Any) -> None:
        self.on_disconnected = callback

    def setOnReadonlyNodeConnectedCallback(self, callback: Any) -> None:
        """There are no such nodes."""

    def setOnReadonlyNodeDisconnectedCallback(self, callback: Any) -> None:
        """There are no such nodes."""

    def setOnUtilityMessageCallback(self, message: str, callback: Any) -> None:
        """There are no such messages."""

    def destroy(self) -> None:
        """Connections belong to the member."""
