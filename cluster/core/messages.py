"""What nodes of a cluster say to each other, and the one codec for it.

A message is a frozen struct with a number of its own (``tag``), encoded as a msgpack array. Numbers
are never used again; fields are only ever appended, with a default: older nodes skip what they
don't know, newer ones fill in what is missing. Numbers by area, 256 each: 0x01__ the log, 0x02__
membership, 0x03__ metadata, 0x04__ partitions, 0x05__ snapshots, 0x06__ queries, 0x7f__ tests.

    class GetInfo(Request[Info], frozen=True, tag=0x0105):
        partition: int
"""

from functools import cache
from typing import Any, Generic, TypeVar, get_args

import msgspec

from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.core.invariant import invariant

KIND_MAX = 0x7FFF


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One thing said, one way."""


R_co = TypeVar("R_co", covariant=True)


class Request(Message, Generic[R_co], frozen=True):
    """A message that is answered once, by what stands in the brackets."""


class Peer(Message, frozen=True, tag=0x0001):
    """Who is at the other end: one run of one node's process, and its disk.

    Node 0 is a guest: a process that is no member (yet). It may only ask what is open to guests.
    """

    node: NodeId
    generation: int
    incarnation: int
    storage_uuid: bytes

    @property
    def writer(self) -> Writer:
        return Writer(self.node, self.generation, self.incarnation)

    @property
    def member(self) -> Member:
        return Member(self.node, self.storage_uuid)


GUEST = NodeId(0)


class BadMessage(Exception):
    """Bytes that are no message of the kind they claim to be, or of no known kind."""


M = TypeVar("M", bound=Message)

_encoder = msgspec.msgpack.Encoder()


def kind_of(kind: type[Message]) -> int:
    """The number under which messages of this class travel."""
    number = kind.__struct_config__.tag
    invariant(isinstance(number, int), "a message without a number", kind=kind.__name__)
    assert isinstance(number, int)
    return number


def encode(message: Message) -> bytes:
    """The message as bytes; its kind travels beside them."""
    return _encoder.encode(message)


def decode(kind: int, data: bytes | memoryview) -> Message:
    """The message of that kind.

    Raises:
        BadMessage: the kind is not known, or the bytes don't fit it.
    """
    decoder = _decoders().get(kind)
    if decoder is None:
        # Subclasses may have been made since: modules are imported when they are needed.
        _decoders.cache_clear()
        decoder = _decoders().get(kind)
        if decoder is None:
            raise BadMessage(f"no message has the number {kind:#06x}")
    try:
        message: Message = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
        raise BadMessage(f"message {kind:#06x}: {failure}") from failure
    return message


@cache
def replies_of(kind: type[Request[Any]]) -> tuple[type[Message], ...]:
    """The classes that may answer a request."""
    for base in getattr(kind, "__orig_bases__", ()):
        for reply in get_args(base):
            return get_args(reply) or (reply,)
    return ()


def catalogue() -> dict[int, type[Message]]:
    """Every message class by number. Two classes with one number are a bug."""
    found: dict[int, type[Message]] = {}
    pending: list[type[Message]] = [Message]
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        if kind in (Message, Request):
            continue
        number = kind_of(kind)
        invariant(0 < number <= KIND_MAX, "a number out of range", kind=kind.__name__)
        other = found.setdefault(number, kind)
        # Dataclass-like machinery may leave an earlier copy of the same class behind.
        same = other.__qualname__ == kind.__qualname__ and other.__module__ == kind.__module__
        invariant(same, "two messages have one number", one=other.__name__, other=kind.__name__)
    return found


@cache
def _decoders() -> dict[int, "msgspec.msgpack.Decoder[Any]"]:
    return {number: msgspec.msgpack.Decoder(kind) for number, kind in catalogue().items()}
