"""What the log asks of a partition: the only way its tables ever change.

Commands are encoded as tagged arrays; tags are never reused and fields are only appended. Whatever
a command needs to know from outside (time, random ids, the registry) was decided by the leader
that proposed it and is in the command or its record.
"""

import msgspec

from perdure.core.ids import InvocationId
from perdure.storage.tables.futures import Future
from perdure.storage.tables.invocations import CallerSink, Failure, Pin, Source, Target
from perdure.storage.tables.journal import AttemptFailure, CallInfo

RECORD_KIND_COMMAND = 2
"""``kind`` of a log record that holds a command of this module."""


class Announce(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """First record of a segment: its writer leads once it has applied this."""

    epoch: int
    node: int
    generation: int
    incarnation: int
    software: str


class Invoke(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Accept an invocation. ``input``: payload of its Input entry. ``execute_at_ms`` 0: now."""

    id: InvocationId
    target: Target
    source: Source
    sink: CallerSink | None
    execute_at_ms: int
    idempotency_key: str | None
    completion_retention_ms: int
    journal_retention_ms: int
    input: bytes


class Append(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """The service sent a command; ``call`` is set for Call and OneWayCall."""

    type_code: int
    payload: bytes
    call: CallInfo | None = None


class CompleteRun(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The service proposed a run's result; ``payload`` is the notification to store."""

    completion_id: int
    payload: bytes
    failed: bool


class Suspend(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """The attempt ended, waiting; ``delivered`` entries had reached it."""

    awaiting: Future
    delivered: int


class End(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """The attempt ended with the last Output as the result."""


class Fail(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """The invocation ends with this failure, whatever its journal says."""

    failure: Failure
    event: AttemptFailure | None = None


class PauseAttempt(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """The attempt failed and an operator has to look at it."""

    event: AttemptFailure | None = None


class AttemptFailed(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """The attempt failed and will be retried: recorded for people."""

    event: AttemptFailure


class Yield(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """The attempt is over because of a pause that was asked for; without effect if that was taken
    back meanwhile. ``event``: the failure that ended the attempt, or the last one."""

    event: AttemptFailure | None = None


Effect = Append | CompleteRun | Suspend | End | Fail | PauseAttempt | AttemptFailed | Yield


class Effects(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """What one attempt did, in order. ``pin`` is stored with the first entry that is."""

    id: InvocationId
    session: int
    pin: Pin
    effects: list[Effect]


class FireTimers(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """These timers are due (keys of the tables ``timers`` and ``expiries``)."""

    keys: list[bytes]


class Signal(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Deliver a signal, by index or else by name; ``payload`` is the notification to store."""

    id: InvocationId
    index: int | None
    name: str
    payload: bytes
    failed: bool


class Complete(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """The completion that a sink waits for; ``payload`` is the notification to store."""

    sink: CallerSink
    payload: bytes
    failed: bool


class Attach(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """A caller wants an invocation's result; unless ``wait``, only if it is there already."""

    id: InvocationId
    sink: CallerSink
    wait: bool


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Ask an invocation to end."""

    id: InvocationId


class Kill(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """End an invocation and those it called."""

    id: InvocationId


class Purge(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """Forget a completed invocation."""

    id: InvocationId


class PurgeJournal(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """Forget the journal of a completed invocation."""

    id: InvocationId


class PatchState(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """Replace an object's whole state, if its version is ``version`` (None: whatever it is)."""

    service: str
    key: str
    is_locked_by_handlers: bool
    version: str | None
    entries: tuple[tuple[bytes, bytes], ...]


class TrimOutbox(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """A partition has applied our messages up to ``sequence``."""

    partition: int
    sequence: int


class Resume(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """Let a paused or suspended invocation run again; ``pin`` replaces the one it has, if any."""

    id: InvocationId
    pin: Pin | None = None


class Pause(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """Stop running an invocation until it is resumed."""

    id: InvocationId


class Restart(msgspec.Struct, frozen=True, array_like=True, tag=15, gc=False):
    """Run a completed invocation again as ``new_id``, from its journal's entries up to an index.

    Both ids have one partition. ``pin`` None: from the input alone the new one is not pinned, from
    further on it keeps the old one's pin.
    """

    id: InvocationId
    new_id: InvocationId
    from_index: int
    pin: Pin | None
    completion_retention_ms: int
    journal_retention_ms: int


Command = (
    Announce
    | Invoke
    | Effects
    | FireTimers
    | Signal
    | Complete
    | Attach
    | Cancel
    | Kill
    | Purge
    | PurgeJournal
    | PatchState
    | TrimOutbox
    | Resume
    | Pause
    | Restart
)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


def encode_command(command: Command) -> bytes:
    """The payload of a log record."""
    return _ENCODER.encode(command)


def decode_command(payload: bytes) -> Command:
    """The command in a log record's payload.

    Raises:
        msgspec.DecodeError: not a command that this release knows.
    """
    return _DECODER.decode(payload)
