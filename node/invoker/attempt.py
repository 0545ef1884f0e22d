"""One attempt as a sans-IO machine: journal entries and the service's bytes in; bytes for the
service and effects for the log out.

The journal is sent by a cursor that only moves forward: what stood at the start is replayed
verbatim, what is appended afterwards is streamed, and this attempt's own commands are not echoed.
So live order is journal order, and nothing is ever sent twice (spec 3.2, 7.1).

Invariants: ``cursor <= journal length`` · frames after a terminal one are ignored · effects leave
in the order their frames came.
"""

from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import NamedTuple

from google.protobuf.message import DecodeError

from perdure.core.attempt_errors import (
    AttemptError,
    FutureTooDeep,
    HandlerFailed,
    JournalMismatch,
    MessageTooLarge,
    PayloadRefused,
    RateLimited,
    ServiceUnreachable,
    VersionRefused,
)
from perdure.core.limits import (
    FRAME_BYTES_MAX,
    FUTURE_DEPTH_MAX,
)
from perdure.engine.actions import Recorded
from perdure.engine.commands import Append, CompleteRun, Effect
from perdure.engine.futures import depth, is_empty
from perdure.node.invoker.batches import count_commands
from perdure.node.invoker.validation import Resolver, check_command, command_name
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import (
    COMMAND_FIRST,
    CUSTOM_FIRST,
    NOTIFICATION_FIRST,
    REQUESTED_ACK,
    Frame,
    FrameReader,
    MessageType,
    encode_frame,
    encode_header,
)
from perdure.storage.tables.futures import Combinator, Future
from perdure.storage.tables.journal import AttemptFailure, CallInfo, Entry

# What is compared for every frame, as plain numbers.
_RUN_COMMAND = int(MessageType.RUN_COMMAND)
_RUN_COMPLETION = int(MessageType.RUN_COMPLETION)
_CALL_INVOCATION_ID_COMPLETION = int(MessageType.CALL_INVOCATION_ID_COMPLETION)
_PROPOSE_RUN_COMPLETION = int(MessageType.PROPOSE_RUN_COMPLETION)
_AWAITING_ON = int(MessageType.AWAITING_ON)
_MISMATCH_CODE = 570
_VIOLATION_CODE = 571
_FIRST_VERSION_WITH_TREES = 7


class Behavior(Enum):
    """What the service wants done about its error."""

    RETRY = "retry"
    PAUSE = "pause"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The attempt failed. ``retry_after_ms``: wait exactly that long, uncounted.

    ``is_reached`` is False where the SDK never saw the invocation (spec 5.7): such a failure
    doesn't count for what SDKs are told. ``is_unseen``: retry at once, as if nothing happened.
    """

    failure: AttemptFailure
    behavior: Behavior = Behavior.RETRY
    retry_after_ms: int | None = None
    is_reached: bool = True
    is_unseen: bool = False


@dataclass(frozen=True, slots=True)
class Suspended:
    """The service waits for this."""

    awaiting: Future


@dataclass(frozen=True, slots=True)
class Ended:
    """The service has given its output."""


Terminal = Failed | Suspended | Ended


class Received(NamedTuple):
    """What a chunk brought: effects to record, acks to remember for them, and perhaps the end."""

    effects: list[Effect]
    flags: list[bool]
    terminal: Terminal | None


class Attempt:
    """``journal_length`` and ``command_count`` as at the start; ``kind`` of the handler."""

    def __init__(
        self,
        *,
        version: int,
        journal_length: int,
        command_count: int,
        kind: int,
        frame_bytes_max: int = FRAME_BYTES_MAX,
    ) -> None:
        self.version = version
        self.known_entries = journal_length
        self.cursor = 0
        self._awaiting_on: pb.Future | Future | None = None
        self.is_waiting = False
        """Whether the service most likely does nothing until it is sent something."""
        self._runs_open = 0  # begun on this attempt, and their completions not yet sent
        self._commands_received = command_count
        self._commands_recorded = command_count
        self._kind = kind
        self._frame_bytes_max = frame_bytes_max
        self._reader = FrameReader(frame_bytes_max)
        self._command_acks: dict[int, int] = {}
        self._run_acks: dict[int, int] = {}
        self._is_over = False
        self._checked: int | None = None  # type of the command that is being looked at

    # --- Towards the service --------------------------------------------------------------------

    @property
    def is_replaying(self) -> bool:
        """Whether entries of the start are still to be sent."""
        return self.cursor < self.known_entries

    @property
    def awaiting_on(self) -> Future | None:
        """What the code said it waits for, until it goes on."""
        if isinstance(self._awaiting_on, pb.Future):
            self._awaiting_on = _decode_future(self._awaiting_on)
        return self._awaiting_on

    @property
    def commands_received(self) -> int:
        """Commands seen on this attempt and replayed to it."""
        return self._commands_received

    def send(self, entry: Entry) -> list[bytes]:
        """The bytes for the entry at the cursor, which moves on; none for own commands."""
        index = self.cursor
        self.cursor = index + 1
        is_own = COMMAND_FIRST <= entry.type < NOTIFICATION_FIRST
        if not is_own:
            self._note_sent(entry.type)
        if index < self.known_entries:
            return [encode_header(entry.type, len(entry.payload)), entry.payload]
        parts: list[bytes] = []
        if not is_own:
            completion_id = self._run_acks.pop(index, None) if self._run_acks else None
            if completion_id is not None:
                ack = pb.ProposeRunCompletionAckMessage(completion_id=completion_id)
                payload = ack.SerializeToString()
                parts.append(encode_frame(MessageType.PROPOSE_RUN_COMPLETION_ACK, payload))
            else:
                parts.append(encode_header(entry.type, len(entry.payload)))
                parts.append(entry.payload)
        command_index = self._command_acks.pop(index, None) if self._command_acks else None
        if command_index is not None:
            payload = pb.CommandAckMessage(command_index=command_index).SerializeToString()
            parts.append(encode_frame(MessageType.COMMAND_ACK, payload))
        return parts

    def _note_sent(self, type_code: int) -> None:
        if type_code == _RUN_COMPLETION and self._runs_open:
            self._runs_open -= 1
        # A call's id comes at once: who waits for its result goes on waiting.
        if type_code != _CALL_INVOCATION_ID_COMPLETION:
            self.is_waiting = False

    def on_recorded(self, effects: list[Effect], flags: list[bool], outcome: Recorded) -> None:
        """Effects of this attempt are in the journal: remember which places call for an ack.

        To be called before the cursor passes them.
        """
        if True not in flags:
            self._commands_recorded += count_commands(effects)
            return
        position = 0
        for effect, wants_ack in zip(effects, flags, strict=True):
            if isinstance(effect, Append):
                if wants_ack:
                    place = outcome.indices[position] + outcome.completions[position]
                    self._command_acks[place] = self._commands_recorded
                self._commands_recorded += 1
            elif not isinstance(effect, CompleteRun):
                continue
            elif wants_ack and self.version >= _FIRST_VERSION_WITH_TREES:
                self._run_acks[outcome.indices[position]] = effect.completion_id
            position += 1

    # --- From the service -----------------------------------------------------------------------

    def on_response(
        self, status: int, content_type: str | None, retry_after_ms: int | None
    ) -> Failed | None:
        """The response head: None when it is as it should be (spec 1.4)."""
        expected = content_type_of(self.version)
        match status:
            case 502 | 504:
                error: AttemptError = ServiceUnreachable(
                    f"service is temporary unavailable '{_status_text(status)}'"
                )
            case 503 | 429:
                error = RateLimited(f"service is rate limited due to '{_status_text(status)}'")
                return self._over(fail(error, retry_after_ms=retry_after_ms))
            case 415:
                error = VersionRefused(
                    "cannot start the invocation because the SDK doesn't support the protocol "
                    f"version '{self.version}' negotiated at discovery time"
                )
                return self._over(fail(error, is_reached=False))
            case 413:
                error = PayloadRefused("service replied with content too large")
            case _ if not 200 <= status < 300:
                error = AttemptError(f"unexpected http status code: {_status_text(status)}")
            case _ if content_type != expected:
                error = AttemptError(
                    f"unexpected content type {content_type!r}; expected content type {expected!r}"
                )
            case _:
                return None
        return self._over(fail(error))

    def on_bytes(self, data: bytes, resolver: Resolver) -> Received:
        """Frames of the service. Once a terminal one was seen, the rest is ignored."""
        effects: list[Effect] = []
        flags: list[bool] = []
        if self._is_over:
            return Received(effects, flags, None)
        try:
            for frame in self._reader.feed(data):
                terminal = self._on_frame(frame, resolver, effects, flags)
                if terminal is not None:
                    self._is_over = True
                    return Received(effects, flags, terminal)
        except AttemptError as error:
            return Received(effects, flags, self._over(self._blame(error)))
        oversize = self._reader.oversize
        if oversize is not None:
            limit = MessageTooLarge(
                f"{command_name(oversize.type)} of {oversize.length} bytes: the limit is "
                f"{self._frame_bytes_max}"
            )
            return Received(effects, flags, self._over(fail(limit)))
        return Received(effects, flags, None)

    def on_end(self) -> Failed | None:
        """The response ended; a failure unless a terminal frame came before."""
        if self._is_over:
            return None
        if self._reader.is_between_frames:
            return self._over(fail(AttemptError("unknown")))
        return self._over(fail(AttemptError("the response ended in the middle of a frame")))

    def _over(self, failed: Failed) -> Failed:
        self._is_over = True
        return failed

    def _on_frame(
        self, frame: Frame, resolver: Resolver, effects: list[Effect], flags: list[bool]
    ) -> Terminal | None:
        type_code, bits, payload = frame
        if COMMAND_FIRST <= type_code < NOTIFICATION_FIRST:
            self._checked = type_code
            call = self._check(type_code, payload, resolver)
            self._checked = None
            self._commands_received += 1
            self._awaiting_on = None  # the code went on
            self.is_waiting = type_code in _AWAITED
            if type_code == _RUN_COMMAND:
                self._runs_open += 1
            effects.append(Append(type_code, payload, call))
            flags.append(bits & REQUESTED_ACK != 0)
            return None
        try:
            if type_code == _PROPOSE_RUN_COMPLETION:
                self.is_waiting = False
                effects.append(_run_completion(payload))
                flags.append(bits & REQUESTED_ACK != 0)
                return None
            if type_code == _AWAITING_ON and self.version >= _FIRST_VERSION_WITH_TREES:
                self._awaiting_on = self._awaited(payload)
                self.is_waiting = not self._runs_open
                return None
            match type_code:
                case MessageType.END:
                    return Ended()
                case MessageType.SUSPENSION:
                    return Suspended(self._suspension(payload))
                case MessageType.ERROR:
                    return self._error(payload)
                case _:
                    pass
        except DecodeError as error:
            raise AttemptError(f"{command_name(type_code)}: it can't be decoded") from error
        what = "custom entry" if type_code >= CUSTOM_FIRST else command_name(type_code)
        raise AttemptError(f"received unexpected message: {what}")

    def _check(self, type_code: int, payload: bytes, resolver: Resolver) -> CallInfo | None:
        try:
            return check_command(type_code, payload, self._kind, resolver)
        except AttemptError as error:
            where = f"{command_name(type_code)} (command index {self._commands_received})"
            raise type(error)(f"{where}: {error.message}") from error

    def _suspension(self, payload: bytes) -> Future:
        message = pb.SuspensionMessage.FromString(payload)
        if self.version >= _FIRST_VERSION_WITH_TREES:
            return self._tree(message.awaiting_on, "Suspension")
        future = Future(
            Combinator.UNKNOWN,
            tuple(message.waiting_completions),
            tuple(message.waiting_signals),
            tuple(message.waiting_named_signals),
        )
        if is_empty(future):
            raise AttemptError("got empty SuspensionMessage")
        return future

    def _awaited(self, payload: bytes) -> pb.Future | Future:
        """Most wait for one thing, and nobody looks: a flat future is decoded when asked for."""
        message = pb.AwaitingOnMessage.FromString(payload).awaiting_on
        is_flat = not message.nested_futures and message.combinator_type in _COMBINATORS
        if is_flat and (message.waiting_completions or message.waiting_signals):
            return message
        return self._tree(message, "AwaitingOn")

    def _tree(self, message: pb.Future, what: str) -> Future:
        future = _decode_future(message)
        if is_empty(future):
            raise AttemptError(f"got empty {what}Message")
        if depth(future) > FUTURE_DEPTH_MAX:
            raise FutureTooDeep(
                f"the awaited future is nested deeper than {FUTURE_DEPTH_MAX} levels"
            )
        return future

    def _error(self, payload: bytes) -> Failed:
        message = pb.ErrorMessage.FromString(payload)
        match message.code:
            case 570:
                kind: type[AttemptError] = JournalMismatch
            case 571:
                kind = AttemptError
            case _:
                kind = HandlerFailed
        has = message.HasField
        failure = AttemptFailure(
            message.code if message.code <= 0xFFFF else 500,
            message.message,
            message.stacktrace,
            kind.code,
            message.related_command_index if has("related_command_index") else None,
            message.related_command_name if has("related_command_name") else None,
            message.related_command_type if has("related_command_type") else None,
        )
        delay = message.next_retry_delay if has("next_retry_delay") else None
        behavior = _BEHAVIORS.get(message.behavior, Behavior.RETRY)
        return Failed(failure=failure, behavior=behavior, retry_after_ms=delay)

    def _blame(self, error: AttemptError) -> Failed:
        if isinstance(error, FutureTooDeep):
            return fail(error, behavior=Behavior.PAUSE)
        index = self._commands_received
        return fail(error, command_index=index, command_type=self._checked)


def fail(
    error: AttemptError,
    *,
    retry_after_ms: int | None = None,
    is_reached: bool = True,
    is_unseen: bool = False,
    behavior: Behavior = Behavior.RETRY,
    command_index: int | None = None,
    command_type: int | None = None,
) -> Failed:
    """A failure that the server found, in the words of its error."""
    code = error.http_status
    failure = AttemptFailure(
        code, error.message, "", error.code, command_index, command_type=command_type
    )
    return Failed(
        failure=failure,
        behavior=behavior,
        retry_after_ms=retry_after_ms,
        is_reached=is_reached,
        is_unseen=is_unseen,
    )


def content_type_of(version: int) -> str:
    """Content type of both directions of an attempt."""
    return f"application/vnd.restate.invocation.v{version}"


def _run_completion(payload: bytes) -> CompleteRun:
    message = pb.ProposeRunCompletionMessage.FromString(payload)
    completion_id = message.result_completion_id
    notification = pb.NotificationMessage(completion_id=completion_id)
    match message.WhichOneof("result"):
        case "value":
            notification.value.content = message.value
            failed = False
        case "failure":
            notification.failure.CopyFrom(message.failure)
            failed = True
        case _:
            raise AttemptError("the run completion has no result")
    return CompleteRun(completion_id, notification.SerializeToString(), failed)


def _decode_future(message: pb.Future) -> Future:
    if message.combinator_type not in _COMBINATORS:
        raise AttemptError(f"unknown combinator {message.combinator_type}")
    return Future(
        message.combinator_type,
        tuple(message.waiting_completions),
        tuple(message.waiting_signals),
        tuple(message.waiting_named_signals),
        tuple(_decode_future(nested) for nested in message.nested_futures),
    )


def _status_text(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


_BEHAVIORS = {pb.RETRY: Behavior.RETRY, pb.PAUSE: Behavior.PAUSE, pb.FAIL: Behavior.FAIL}
# Commands whose results are long in coming, and that code usually awaits before it goes on.
_AWAITED = frozenset(
    {
        MessageType.CALL_COMMAND,
        MessageType.SLEEP_COMMAND,
        MessageType.GET_PROMISE_COMMAND,
        MessageType.ATTACH_INVOCATION_COMMAND,
    }
)
_COMBINATORS = frozenset(int(combinator) for combinator in Combinator)
