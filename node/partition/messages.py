"""What nodes say to each other about partitions: messages 0x0401 on (cluster/core/messages.py)."""

from perdure.cluster.core.messages import Message, Request
from perdure.core.ids import InvocationId
from perdure.engine.actions import Accepted, Existing, Outcome, Verdict
from perdure.node.partition.cut import Counters
from perdure.storage.snapshot_format import SetMember
from perdure.storage.tables.invocations import Result, Target


class Applied(Message, frozen=True, tag=0x0401):
    """A command's outcome. ``accepted`` or ``existing`` for invocations, ``verdict`` for requests
    of operators, none of them for what has no outcome. ``result``: what an accepted invocation that
    was waited for has ended with already."""

    accepted: int | None = None
    existing: tuple[int, Result | None, int, bool] | None = None
    verdict: str | None = None
    result: Result | None = None


class Propose(Request[Applied], frozen=True, tag=0x0402):
    """Have an encoded command applied by the partition, if the receiver leads it. ``is_awaited``:
    the sender will want the invocation's result next."""

    partition: int
    partition_key: int
    command: bytes
    is_awaited: bool = False


class Known(Message, frozen=True, tag=0x0403):
    """What tables know of an invocation: nothing, its target, or its result too."""

    target: Target | None
    result: Result | None
    expires_at_ms: int


class LookUp(Request[Known], frozen=True, tag=0x0404):
    """What is known of an invocation?"""

    partition: int
    invocation: InvocationId


class Ended(Message, frozen=True, tag=0x0405):
    """An invocation's result."""

    result: Result


class Watch(Request[Ended], frozen=True, tag=0x0406):
    """Answer when the invocation has ended. ``ticket``: the asker's name for this wish."""

    partition: int
    invocation: InvocationId
    ticket: int


class Unwatch(Message, frozen=True, tag=0x0407):
    """Nobody waits under this ticket any more."""

    ticket: int


class Deliver(Message, frozen=True, tag=0x0408):
    """A message of ``source``'s outbox for ``target``, in the order of ``sequence``."""

    source: int
    target: int
    sequence: int
    partition_key: int
    payload: bytes


class Delivered(Message, frozen=True, tag=0x0409):
    """``target`` has applied ``source``'s messages up to ``sequence``."""

    source: int
    target: int
    sequence: int


class Undelivered(Message, frozen=True, tag=0x040A):
    """``target`` didn't take what ``source`` sent: send again all that is not ``Delivered``."""

    source: int
    target: int


class TablesPiece(Message, frozen=True, tag=0x040B):
    """Rows of a partition's tables, by ascending key; the first one says how far they are."""

    rows: tuple[tuple[bytes, bytes], ...]


class CopyTables(Request[TablesPiece], frozen=True, tag=0x040C):
    """Stream what the partition's tables had at their last commit."""

    partition: int


class CutDone(Message, frozen=True, tag=0x040D):
    """A step of a cut was done. ``counters``: of each partition, once they are frozen."""

    counters: tuple[Counters, ...] = ()


class CutStep(Request[CutDone], frozen=True, tag=0x040E):
    """Do the next step of the cut ``token`` with these partitions, all led by the receiver."""

    token: int
    step: str
    partitions: tuple[int, ...]


class CutStored(Message, frozen=True, tag=0x040F):
    """The snapshots of a cut's partitions count."""

    members: tuple[SetMember, ...]


class StoreCut(Request[CutStored], frozen=True, tag=0x0410):
    """Put what was frozen into the object store. ``pinned``: ids of snapshots that sets name."""

    token: int
    pinned: tuple[str, ...]


class ReleaseCut(Message, frozen=True, tag=0x0411):
    """Nothing comes of the cut: let go."""

    token: int


class Led(Message, frozen=True, tag=0x0412):
    """The sender leads the partition from now on: who waits for a leader need wait no longer."""

    partition: int
    epoch: int


def pack(outcome: Outcome) -> Applied:
    """An outcome as it travels. What an attempt is told stays on its node: it never does."""
    match outcome:
        case Accepted():
            return Applied(accepted=outcome.execute_at_ms)
        case Existing():
            fields = (outcome.execute_at_ms, outcome.result, outcome.expires_at_ms)
            return Applied(existing=(*fields, outcome.is_repeat))
        case Verdict():
            return Applied(verdict=outcome.value)
        case _:
            return Applied()


def unpack(applied: Applied) -> Outcome:
    """The outcome that was packed."""
    if applied.accepted is not None:
        return Accepted(applied.accepted)
    if applied.existing is not None:
        return Existing(*applied.existing)
    return Verdict(applied.verdict) if applied.verdict is not None else None
