"""Writing to the journal of one invocation while its record is in hand.

``Tape`` appends commands and notifications and counts them; ``notify`` is the one way by which a
notification from elsewhere reaches an invocation, whatever state it is in.
"""

import msgspec

from perdure.core.ids import InvocationId
from perdure.core.limits import (
    EVENT_AWAITED_MAX,
    EVENT_TEXT_CHARACTERS_MAX,
    EVENTS_PER_INVOCATION_MAX,
)
from perdure.engine.actions import JournalGrew, StartAttempt
from perdure.engine.futures import Arrival, Lookup, arrive, size_of
from perdure.engine.turn import Turn
from perdure.proto.frames import COMMAND_FIRST, NOTIFICATION_FIRST
from perdure.storage.keys import index_suffix
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.futures import Future
from perdure.storage.tables.invocations import (
    Invoked,
    Paused,
    Pin,
    Progress,
    Spec,
    Started,
    Status,
    Suspended,
    status_key,
    target_key,
)
from perdure.storage.tables.journal import (
    AttemptFailure,
    CallInfo,
    Entry,
    Event,
    EventKind,
    completion_suffix,
    named_signal_suffix,
    pack_notification,
    signal_suffix,
    unpack_notification,
)


class Tape:
    """The end of a journal. ``progress()`` is how far it got, to be put back into the row."""

    __slots__ = (
        "_commands",
        "_events",
        "_has_attachers",
        "_id",
        "_started_at_ms",
        "_turn",
        "length",
        "modified_at_ms",
        "pin",
    )

    def __init__(self, turn: Turn, invocation: InvocationId, progress: Progress) -> None:
        self._turn = turn
        self._id = invocation
        self.length = progress.journal_length
        self._commands = progress.command_count
        self.pin = progress.pin
        self.modified_at_ms = progress.modified_at_ms
        self._started_at_ms = progress.started_at_ms
        self._events = progress.event_count
        self._has_attachers = progress.has_attachers

    def append(self, type_code: int, payload: bytes, call: CallInfo | None = None) -> int:
        """Record an entry; returns its index."""
        index = self.length
        turn = self._turn
        turn.store.journal.put(
            self._id,
            index_suffix(index),
            Entry(type_code, payload, turn.now_ms, call),
            len(payload),
        )
        self.length = index + 1
        if COMMAND_FIRST <= type_code < NOTIFICATION_FIRST:
            self._commands += 1
        self.modified_at_ms = turn.now_ms
        return index

    def complete(
        self, type_code: int, completion_id: int, payload: bytes, failed: bool = False
    ) -> int:
        """Record a completion and where it stands."""
        index = self.append(type_code, payload)
        self._turn.store.notifications.put(
            self._id, completion_suffix(completion_id), pack_notification(index, failed)
        )
        return index

    def event(
        self, kind: EventKind, failure: AttemptFailure | None, awaiting: Future | None = None
    ) -> None:
        """Record something for people to see, of which the latest are kept.

        The same failure in a row is recorded once.
        """
        events = self._turn.store.events
        failure = _clipped(failure) if failure is not None else None
        if awaiting is not None and size_of(awaiting) > EVENT_AWAITED_MAX:
            awaiting = None
        event = Event(kind, self.length - 1, self._turn.now_ms, failure, awaiting)
        if kind is EventKind.TRANSIENT_ERROR and self._events:
            last = events.get(self._id, index_suffix(self._events - 1))
            same = (kind, event.after_index, failure)
            if last is not None and (last.kind, last.after_index, last.failure) == same:
                return
        size = len(failure.message) + len(failure.stacktrace) if failure is not None else 0
        events.put(self._id, index_suffix(self._events), event, size)
        if self._events >= EVENTS_PER_INVOCATION_MAX:
            events.delete(self._id, index_suffix(self._events - EVENTS_PER_INVOCATION_MAX))
        self._events += 1

    def progress(self) -> Progress:
        """The counters as they stand."""
        return Progress(
            self.length,
            self._commands,
            self.pin,
            self.modified_at_ms,
            self._started_at_ms,
            self._events,
            self._has_attachers,
        )

    def set_pin(self, pin: Pin) -> None:
        """Stay with a deployment from here on."""
        self.pin = pin
        self.modified_at_ms = self._turn.now_ms


def notify(
    turn: Turn,
    target: InvocationId,
    row: Started,
    entry: tuple[int, bytes],
    key: tuple[bytes, bool],
) -> None:
    """Append a notification from elsewhere; wake the invocation if that is what it waited for.

    ``entry``: type code and payload. ``key``: its suffix in ``notifications``, whether it failed.
    """
    tape = Tape(turn, target, row.progress)
    index = tape.append(*entry)
    turn.store.notifications.put(target, key[0], pack_notification(index, key[1]))
    progress = tape.progress()
    match row:
        case Invoked():
            running = Invoked(row.spec, progress, row.session, row.is_pausing)
            turn.store.invocations.put(target, running)
            turn.actions.append(JournalGrew(target, progress.journal_length))
        case Paused():
            turn.store.invocations.put(target, Paused(row.spec, progress))
        case Suspended():
            rest = arrive(row.awaiting, _arrival(*key))
            if rest is None:
                run(turn, target, Invoked(row.spec, progress, turn.lsn), Status.SUSPENDED)
            else:
                suspended = Suspended(row.spec, progress, rest, row.delivered)
                turn.store.invocations.put(target, suspended)


def run(turn: Turn, target: InvocationId, row: Invoked, before: Status | None) -> None:
    """Make the invocation, which was ``before`` or is new, run under a new session."""
    turn.store.invocations.put(target, row)
    move(turn.store, target, row.spec, before, Status.INVOKED, row.session)
    turn.actions.append(StartAttempt(target, row.session))


def move(
    store: PartitionStore,
    target: InvocationId,
    spec: Spec,
    before: Status | None,
    after: Status | None,
    session: int = 0,
) -> None:
    """Keep ``statuses`` and ``targets`` in step with the invocation's row; None: there is none."""
    if before is None and after is not None:
        store.targets.put(target_key(spec.target, spec.created_at_ms, target), 0)
    elif after is None and before is not None:
        store.targets.delete(target_key(spec.target, spec.created_at_ms, target))
    if before is not None and before is not after:
        store.statuses.delete(status_key(before, spec.created_at_ms, target))
    if after is not None:
        store.statuses.put(status_key(after, spec.created_at_ms, target), session)


def _arrival(suffix: bytes, failed: bool) -> Arrival:
    """The notification stored under ``suffix``, as those who wait know it."""
    kind, number = suffix[:1], suffix[1:]
    if kind == b"c":
        return Arrival(failed, completion=int.from_bytes(number))
    if kind == b"s":
        return Arrival(failed, signal=int.from_bytes(number))
    return Arrival(failed, is_name=lambda name: named_signal_suffix(name) == suffix)


def lookup_of(store: PartitionStore, target: InvocationId, delivered: int) -> Lookup:
    """Finds notifications of ``target``.

    Signals count only from journal index ``delivered`` on: the same index or name may arrive many
    times, and what was delivered before was consumed (spec 7.3, trap 36).
    """
    rows = store.notifications

    def completion(completion_id: int) -> bool | None:
        row = rows.get(target, completion_suffix(completion_id))
        return None if row is None else unpack_notification(row)[1]

    def recent(suffix: bytes) -> bool | None:
        row = rows.get(target, suffix)
        if row is None:
            return None
        index, failed = unpack_notification(row)
        return failed if index >= delivered else None

    return Lookup(
        completion,
        lambda index: recent(signal_suffix(index)),
        lambda name: recent(named_signal_suffix(name)),
    )


def _clipped(failure: AttemptFailure) -> AttemptFailure:
    """The failure with texts of a length that people read."""
    limit = EVENT_TEXT_CHARACTERS_MAX
    name = failure.command_name
    longest = max(len(failure.message), len(failure.stacktrace), len(name or ""))
    if longest <= limit:
        return failure
    return msgspec.structs.replace(
        failure,
        message=failure.message[:limit],
        stacktrace=failure.stacktrace[:limit],
        command_name=name[:limit] if name is not None else None,
    )
