"""Connections between metadata members, made of one-way datagrams: a machine per peer.

The library needs to be told of every loss: within a connection messages arrive in order, each once,
without a gap, and when one breaks, what was under way is gone and both ends know. The machine makes
that out of any link: each end names its end of a connection by a fresh number, frames carry both
numbers and a count, and whatever doesn't fit breaks the connection. Peers show who they are before:
the cluster, and the name that was drawn with the member's storage; a member whose storage was
made again is a stranger, because it has forgotten its votes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from perdure.cluster.metadata.raft_messages import PeerMessage
from perdure.core.telemetry import logger

log = logger("metadata")

_HELLO_EVERY_S = 0.25
_SILENCE_MAX_S = 2.0


class Hello(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """Who speaks, and the two numbers of the connection as the sender knows them (0: not yet)."""

    cluster: str
    storage: str
    mine: int
    yours: int
    is_connected: bool


class Data(msgspec.Struct, frozen=True, tag=2, array_like=True):
    """A message of a connection."""

    mine: int
    yours: int
    count: int
    message: PeerMessage


Frame = Hello | Data

_decoder = msgspec.msgpack.Decoder(Frame)
_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class MemberIdentity:
    """A member as it was provisioned; ``storages`` names every member's storage. ``quorum``: the
    how manieth of its cluster; each later one goes on from where the one before was stopped."""

    cluster: str
    node: int
    storages: dict[int, str]
    quorum: int = 1


@dataclass(frozen=True, slots=True)
class PeerHooks:
    """What a connection needs from around it."""

    draw: Callable[[], int]  # a fresh number, never 0
    send: Callable[[bytes], None]
    on_connected: Callable[[], None]
    on_disconnected: Callable[[], None]
    on_message: Callable[[PeerMessage], None]


class PeerConnection:
    """Our end of the connection with one peer."""

    def __init__(self, identity: MemberIdentity, peer: int, hooks: PeerHooks) -> None:
        self._identity = identity
        self._peer = peer
        self._hooks = hooks
        self._mine = hooks.draw()
        self._theirs = 0
        self._sent_count = 0
        self._received_count = 0
        self._hello_due = 0.0
        self._heard_at = 0.0
        self._is_stranger = False
        self.is_connected = False

    def tick(self, now: float) -> None:
        """Introduce ourselves, keep the line warm, give up on silence."""
        if self.is_connected and now - self._heard_at > _SILENCE_MAX_S:
            self.reset()
        if now >= self._hello_due:
            self._hello_due = now + _HELLO_EVERY_S
            self._greet()

    def send(self, message: PeerMessage) -> None:
        """Send on the connection; nothing is sent without one."""
        if self.is_connected:
            self._sent_count += 1
            self._hooks.send(
                _encoder.encode(Data(self._mine, self._theirs, self._sent_count, message))
            )

    def reset(self) -> None:
        """Break the connection and look for a new one."""
        self._mine = self._hooks.draw()
        self._theirs = 0
        self._sent_count = self._received_count = 0
        self._hello_due = 0.0
        if self.is_connected:
            self.is_connected = False
            self._hooks.on_disconnected()

    def receive(self, now: float, content: bytes) -> None:
        """Take a frame that came from the peer."""
        try:
            frame = _decoder.decode(content)
        except msgspec.MsgspecError as error:
            log.warning("metadata.peer.unreadable", peer=self._peer, reason=str(error))
            return
        if isinstance(frame, Hello):
            self._on_hello(now, frame)
        else:
            self._on_data(now, frame)

    def _on_hello(self, now: float, hello: Hello) -> None:
        if not self._is_known(hello):
            if not self._is_stranger:
                log.error("metadata.peer.refused", peer=self._peer, storage=hello.storage)
            self._is_stranger = True
            if self.is_connected:
                self.reset()
            return
        self._is_stranger = False
        is_new = hello.mine != self._theirs
        if is_new:
            if self.is_connected:
                self.reset()
            self._theirs = hello.mine
        self._heard_at = now
        if hello.yours == self._mine and not self.is_connected:
            self._connect()
            is_new = True
        if is_new or (self.is_connected and not hello.is_connected):
            self._greet()

    def _is_known(self, hello: Hello) -> bool:
        """The peer as it was provisioned: of this cluster, and with the memory it had."""
        known = (self._identity.cluster, self._identity.storages[self._peer])
        return (hello.cluster, hello.storage) == known

    def _on_data(self, now: float, frame: Data) -> None:
        if (frame.mine, frame.yours) != (self._theirs, self._mine):
            return  # of a connection that is over
        self._heard_at = now
        if not self.is_connected:
            self._connect()
        if frame.count <= self._received_count:
            return  # seen
        if frame.count != self._received_count + 1:
            self.reset()
            return
        self._received_count += 1
        self._hooks.on_message(frame.message)

    def _connect(self) -> None:
        self.is_connected = True
        self._hooks.on_connected()

    def _greet(self) -> None:
        own = self._identity.storages[self._identity.node]
        self._hooks.send(
            _encoder.encode(
                Hello(self._identity.cluster, own, self._mine, self._theirs, self.is_connected)
            )
        )
