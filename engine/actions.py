"""What apply asks of the leader. Actions are hints, the tables are truth.

Followers drop actions; a new leader finds the same work by scanning tables. So an action that is
lost with its leader is lost without harm.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from perdure.core.ids import InvocationId
from perdure.storage.tables.invocations import Result, Spec


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """The invocation is Invoked under ``session``: run it, now if it was backing off."""

    id: InvocationId
    session: int


@dataclass(frozen=True, slots=True)
class AbortAttempt:
    """The invocation no longer runs: drop its stream, if there is one."""

    id: InvocationId


@dataclass(frozen=True, slots=True)
class WindDown:
    """A pause was asked for: bring the session's attempt to an end, begin no other."""

    id: InvocationId
    session: int


@dataclass(frozen=True, slots=True)
class JournalGrew:
    """Notifications were appended: send them if an attempt is running."""

    id: InvocationId
    journal_length: int


@dataclass(frozen=True, slots=True)
class InvocationEnded:
    """The invocation has a result: answer who waits for it outside.

    ``spec``: for those who only watch; the tables may have forgotten the invocation by now.
    """

    id: InvocationId
    result: Result
    spec: Spec | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class SetTimer:
    """A timer or an expiry was stored under ``key``."""

    key: bytes


@dataclass(frozen=True, slots=True)
class SendMessage:
    """A message to ``partition`` was stored in the outbox under ``sequence``."""

    partition: int
    sequence: int


@dataclass(frozen=True, slots=True)
class MessageApplied:
    """A message of ``partition``'s outbox was applied here (or had been before)."""

    partition: int
    sequence: int


@dataclass(frozen=True, slots=True)
class LeaderAnnounced:
    """An announcement was applied: its writer leads now."""

    epoch: int
    incarnation: int


Action = (
    StartAttempt
    | AbortAttempt
    | WindDown
    | JournalGrew
    | InvocationEnded
    | SetTimer
    | SendMessage
    | MessageApplied
    | LeaderAnnounced
)


class Verdict(Enum):
    """What became of an operator's request."""

    DONE = "done"
    ACCEPTED = "accepted"
    NOT_FOUND = "not_found"
    COMPLETED = "completed"
    NOT_COMPLETED = "not_completed"
    NOT_STARTED = "not_started"
    JOURNAL_TOO_SHORT = "journal_too_short"
    NOT_RESTARTABLE = "not_restartable"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A new invocation. ``execute_at_ms`` 0: at once."""

    execute_at_ms: int


@dataclass(frozen=True, slots=True)
class Existing:
    """The id was taken. ``result`` and ``expires_at_ms`` are set when it has completed.

    ``is_repeat``: by the very request that asks again, because it never heard the outcome.
    """

    execute_at_ms: int
    result: Result | None
    expires_at_ms: int
    is_repeat: bool = False


class Recorded(NamedTuple):
    """An attempt's effects were recorded.

    ``indices``: journal index of each appended command or run completion, in order.
    ``completions``: how many synchronous completions directly follow each.
    ``is_running``: the attempt goes on; False once a terminal effect was applied.
    """

    indices: tuple[int, ...]
    completions: tuple[int, ...]
    journal_length: int
    is_running: bool


@dataclass(frozen=True, slots=True)
class Stale:
    """The effects came from an attempt that is no longer the current one: nothing was done."""


@dataclass(frozen=True, slots=True)
class NoOutput:
    """The attempt ended without an Output in the journal: it failed."""

    recorded: Recorded


Outcome = Accepted | Existing | Recorded | Stale | NoOutput | Verdict | None
"""What the proposer of a command is told once it is applied."""
