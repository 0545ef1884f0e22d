"""What a node says to a metadata member, and what it is told: one codec for all ways between them.

Over the local socket these travel as they are; over the fabric inside ``MetadataAsk`` and
``MetadataTold``. Members exchange ``RaftFrame``.
"""

import msgspec

from perdure.cluster.core.messages import Message, Request
from perdure.cluster.metadata.raft_state import Applied


class Read(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """The register ``key``, or with ``is_prefix`` all below it, as of now."""

    key: str
    is_prefix: bool
    timeout_ms: int


class Write(msgspec.Struct, frozen=True, tag=2, array_like=True):
    """A compare-and-set. ``is_first``: this request was never sent before, to nobody."""

    client: int
    number: int
    since: int
    is_first: bool
    key: str
    expected: int | None
    value: bytes
    timeout_ms: int


class Fill(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """Put registers into an empty store, versions kept."""

    client: int
    number: int
    since: int
    is_first: bool
    registers: list[tuple[str, int, bytes]]
    timeout_ms: int


class Watch(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """What changed after ``position`` of the run ``boot`` of this member; waits for something."""

    boot: int
    position: int
    timeout_ms: int


class Look(msgspec.Struct, frozen=True, tag=5, array_like=True):
    """How the member is."""


class Halt(msgspec.Struct, frozen=True, tag=6, array_like=True):
    """Stop the quorum of this number, if the register ``key`` still has ``version``."""

    client: int
    number: int
    quorum: int
    key: str
    version: int
    timeout_ms: int


class Export(msgspec.Struct, frozen=True, tag=7, array_like=True):
    """All that the quorum of this number was when it was stopped."""

    quorum: int


Ask = Read | Write | Fill | Watch | Look | Halt | Export


class Registers(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """Key, version, value."""

    applied_count: int
    registers: list[tuple[str, int, bytes]]


class Done(msgspec.Struct, frozen=True, tag=2, array_like=True):
    """What became of a write."""

    applied_count: int
    applied: Applied


class Changes(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """Keys that may have changed, and where to go on from."""

    boot: int
    position: int
    keys: list[str]


class Standing(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """A member's view of things."""

    applied_count: int
    node: int
    leader: int | None
    term: int
    applied_index: int
    entry_count: int
    connected: list[int]
    register_count: int
    committed_ago_ms: int | None  # since a commit of this member's own was seen


class Unanswered(msgspec.Struct, frozen=True, tag=5, array_like=True):
    """No quorum in time; a write may still happen."""


class Elsewhere(msgspec.Struct, frozen=True, tag=6, array_like=True):
    """The quorum was stopped; ``register`` says who goes on. Nothing was read or written."""

    register: bytes


class Exported(msgspec.Struct, frozen=True, tag=7, array_like=True):
    """The whole map, encoded."""

    content: bytes


Answer = Registers | Done | Changes | Standing | Unanswered | Elsewhere | Exported


class MetadataTold(Message, frozen=True, tag=0x0302):
    """An encoded answer."""

    content: bytes


class MetadataAsk(Request[MetadataTold], frozen=True, tag=0x0301):
    """An encoded question for the metadata member beside the node that is asked."""

    content: bytes


class RaftFrame(Message, frozen=True, tag=0x0303):
    """What one member's connection machine says to another's."""

    content: bytes


_encoder = msgspec.msgpack.Encoder()
_ask_decoder: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Ask | Answer) -> bytes:
    return _encoder.encode(message)


def decode_ask(content: bytes) -> Ask:
    """Raises msgspec.MsgspecError."""
    return _ask_decoder.decode(content)


def decode_answer(content: bytes) -> Answer:
    """Raises msgspec.MsgspecError."""
    return _answer_decoder.decode(content)
