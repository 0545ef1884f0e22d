"""Virtual objects and workflows: locks, inboxes, state, promises.

All are grouped by the object (``keys.object_group``). Table ``locks`` (group -> Lock), ``inbox``
(group, u64 sequence -> Waiting), ``state`` (group, state key -> StateEntry), ``promises`` (group,
name -> Promise), ``listeners`` (group and hash of a promise's name, caller and completion id ->
CallerSink), ``names`` (group -> names, only for groups that end in a hash).
"""

import hashlib

import msgspec

from perdure.core.ids import InvocationId
from perdure.storage.tables.invocations import Result


class Lock(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Held by an exclusive invocation; the inbox behind it is ``[head, tail)``, with holes."""

    holder: InvocationId
    acquired_at_ms: int
    head: int
    tail: int


class WaitingInvocation(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """An invocation in the inbox."""

    id: InvocationId


class WaitingMutation(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """An operator's replacement of the whole state; ``version`` guards it unless None."""

    version: str | None
    entries: tuple[tuple[bytes, bytes], ...]


Waiting = WaitingInvocation | WaitingMutation


class StateEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A state value with its key in full (the row's own key may end in a hash)."""

    key: bytes
    value: bytes


class Promise(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A workflow's once-set value. While it has no result, those who wait are ``listeners``."""

    name: str
    result: Result | None


class ObjectNames(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a hashed group stands for."""

    service: str
    key: str


def listeners_group(group: bytes, promise_suffix: bytes) -> bytes:
    """The group of those who wait for one promise of an object. One length behind each object's
    group, so none is a prefix of another."""
    return group + hashlib.sha256(promise_suffix).digest()
