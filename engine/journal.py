"""What an attempt did: each command's effect, its entry, and its synchronous completions.

Per command (spec 3.4) in one atomic step: effect, entry at index N, synchronous completions at
N+1 and on. The leader has validated the commands; what is decoded here is only what the effect
needs, and the entry keeps the very bytes the service sent.
"""

from collections.abc import Callable
from dataclasses import dataclass

from perdure.core.hashing import (
    idempotent_service_partition_key,
    idempotent_uuid,
    key_partition_key,
    workflow_uuid,
)
from perdure.core.ids import (
    IdError,
    InvocationId,
    format_invocation_id,
    make_invocation_id,
    parse_awakeable_id,
    parse_invocation_id,
)
from perdure.core.invariant import invariant
from perdure.engine import notifications, objects
from perdure.engine.commands import Append, Attach, Invoke, Signal
from perdure.engine.tape import Tape
from perdure.engine.turn import Turn
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import MessageType as T
from perdure.storage.tables.invocations import (
    CallerSink,
    Failure,
    HandlerKind,
    Result,
    Source,
    SourceKind,
    Spec,
    Success,
    Target,
)
from perdure.storage.tables.timers import TimerKind

PROMISE_COMPLETED = Failure(409, "promise was already completed")


@dataclass(slots=True)
class Journaling:
    """The invocation whose commands are applied. ``object_group`` is b"" for plain services."""

    turn: Turn
    id: InvocationId
    spec: Spec
    tape: Tape
    object_group: bytes

    @property
    def group(self) -> bytes:
        """Group of the object's rows. An empty one would stand for all objects there are."""
        invariant(bool(self.object_group), "only keyed handlers have state", id=self.id)
        return self.object_group

    def sink(self, completion_id: int, type_code: int) -> CallerSink:
        """Where the result of an asynchronous command goes."""
        return CallerSink(self.id, self.spec.accepted_lsn, completion_id, type_code)


def append_command(run: Journaling, command: Append) -> tuple[int, int]:
    """Apply and record a command: its journal index, and how many completions follow it."""
    index = run.tape.append(command.type_code, command.payload, command.call)
    effect = _EFFECTS.get(command.type_code)
    if effect is not None:
        effect(run, command)
    return index, run.tape.length - index - 1


def attach_target(
    message: pb.AttachInvocationCommandMessage | pb.GetInvocationOutputCommandMessage,
) -> InvocationId:
    """The id of the invocation that an Attach or GetInvocationOutput names.

    Raises:
        IdError: it names none, or a malformed one.
    """
    match message.WhichOneof("target"):
        case "invocation_id":
            return parse_invocation_id(message.invocation_id)
        case "idempotent_request_target":
            wanted = message.idempotent_request_target
            key = wanted.service_key if wanted.HasField("service_key") else None
            return idempotent_invocation_id(
                wanted.service_name, key, wanted.handler_name, wanted.idempotency_key
            )
        case "workflow_target":
            workflow = message.workflow_target
            return workflow_invocation_id(workflow.workflow_name, workflow.workflow_key)
        case _:
            raise IdError("no target")


def workflow_invocation_id(service: str, key: str) -> InvocationId:
    """The one id of a workflow's run."""
    return make_invocation_id(key_partition_key(key), workflow_uuid(service, key))


def idempotent_invocation_id(
    service: str, key: str | None, handler: str, idempotency_key: str
) -> InvocationId:
    """The one id of a call under an idempotency key."""
    partition_key = (
        idempotent_service_partition_key(service, idempotency_key)
        if key is None
        else key_partition_key(key)
    )
    uuid = idempotent_uuid(service, key, handler, idempotency_key)
    return make_invocation_id(partition_key, uuid)


# --- Effects ------------------------------------------------------------------------------------


def _get_lazy_state(run: Journaling, command: Append) -> None:
    message = pb.GetLazyStateCommandMessage.FromString(command.payload)
    completion_id = message.result_completion_id
    value = objects.get_state(run.turn.store, run.group, message.key)
    payload = (
        notifications.void(completion_id)
        if value is None
        else notifications.value(completion_id, value)
    )
    run.tape.complete(T.GET_LAZY_STATE_COMPLETION, completion_id, payload)


def _get_lazy_state_keys(run: Journaling, command: Append) -> None:
    message = pb.GetLazyStateKeysCommandMessage.FromString(command.payload)
    completion_id = message.result_completion_id
    keys = [entry.key for entry in objects.state_entries(run.turn.store, run.group)]
    payload = notifications.state_keys(completion_id, keys)
    run.tape.complete(T.GET_LAZY_STATE_KEYS_COMPLETION, completion_id, payload)


def _set_state(run: Journaling, command: Append) -> None:
    message = pb.SetStateCommandMessage.FromString(command.payload)
    objects.set_state(run.turn, run.group, message.key, message.value.content)


def _clear_state(run: Journaling, command: Append) -> None:
    message = pb.ClearStateCommandMessage.FromString(command.payload)
    objects.clear_state(run.turn, run.group, message.key)


def _clear_all_state(run: Journaling, command: Append) -> None:
    run.turn.store.state.clear(run.group)


def _get_promise(run: Journaling, command: Append) -> None:
    message = pb.GetPromiseCommandMessage.FromString(command.payload)
    completion_id = message.result_completion_id
    sink = run.sink(completion_id, T.GET_PROMISE_COMPLETION)
    result = objects.get_promise(run.turn, run.group, message.key, sink)
    if result is not None:
        _complete_with(run, T.GET_PROMISE_COMPLETION, completion_id, result)


def _peek_promise(run: Journaling, command: Append) -> None:
    message = pb.PeekPromiseCommandMessage.FromString(command.payload)
    completion_id = message.result_completion_id
    result = objects.peek_promise(run.turn.store, run.group, message.key)
    if result is not None:
        _complete_with(run, T.PEEK_PROMISE_COMPLETION, completion_id, result)
    else:
        payload = notifications.void(completion_id)
        run.tape.complete(T.PEEK_PROMISE_COMPLETION, completion_id, payload)


def _complete_promise(run: Journaling, command: Append) -> None:
    message = pb.CompletePromiseCommandMessage.FromString(command.payload)
    completion_id = message.result_completion_id
    result: Result = (
        notifications.decode_failure(message.completion_failure)
        if message.WhichOneof("completion") == "completion_failure"
        else Success(message.completion_value.content)
    )
    if objects.complete_promise(run.turn, run.group, message.key, result):
        payload = notifications.void(completion_id)
        run.tape.complete(T.COMPLETE_PROMISE_COMPLETION, completion_id, payload)
    else:
        _complete_with(run, T.COMPLETE_PROMISE_COMPLETION, completion_id, PROMISE_COMPLETED)


def _sleep(run: Journaling, command: Append) -> None:
    message = pb.SleepCommandMessage.FromString(command.payload)
    lsn = run.spec.accepted_lsn
    completion_id = message.result_completion_id
    run.turn.set_timer(message.wake_up_time, TimerKind.SLEEP, run.id, lsn, completion_id)


def _call(run: Journaling, command: Append) -> None:
    message = pb.CallCommandMessage.FromString(command.payload)
    sink = run.sink(message.result_completion_id, T.CALL_COMPLETION)
    _invoke_child(run, command, message, sink, 0)


def _one_way_call(run: Journaling, command: Append) -> None:
    message = pb.OneWayCallCommandMessage.FromString(command.payload)
    _invoke_child(run, command, message, None, message.invoke_time)


def _invoke_child(
    run: Journaling,
    command: Append,
    message: pb.CallCommandMessage | pb.OneWayCallCommandMessage,
    sink: CallerSink | None,
    execute_at_ms: int,
) -> None:
    call = command.call
    invariant(call is not None, "calls are resolved by the leader", id=run.id)
    assert call is not None
    completion_id = message.invocation_id_notification_idx
    payload = notifications.invocation_id(completion_id, format_invocation_id(call.child))
    run.tape.complete(T.CALL_INVOCATION_ID_COMPLETION, completion_id, payload)
    headers = [(header.key, header.value) for header in message.headers]
    if call.traceparent is not None and all(name != "traceparent" for name, _ in headers):
        headers.append(("traceparent", call.traceparent))
    # A workflow's run is one per key already: an idempotency key changes nothing.
    has_key = message.HasField("idempotency_key") and call.kind != HandlerKind.WORKFLOW_RUN
    idempotency_key = message.idempotency_key if has_key else None
    child = Invoke(
        call.child,
        Target(message.service_name, message.handler_name, call.key, call.kind),
        Source(SourceKind.SERVICE, run.id, run.spec.target.text()),
        sink,
        execute_at_ms,
        idempotency_key,
        call.completion_retention_ms,
        call.journal_retention_ms,
        notifications.input_entry(headers, message.parameter),
    )
    run.turn.send(call.child, child)


def _send_signal(run: Journaling, command: Append) -> None:
    message = pb.SendSignalCommandMessage.FromString(command.payload)
    target = parse_invocation_id(message.target_invocation_id)
    is_named = message.WhichOneof("signal_id") == "name"
    kind = message.WhichOneof("result")
    payload = pb.NotificationMessage()
    if is_named:
        payload.signal_name = message.name
    else:
        payload.signal_idx = message.idx
    if kind == "value":
        payload.value.CopyFrom(message.value)
    elif kind == "failure":
        payload.failure.CopyFrom(message.failure)
    else:
        payload.void.SetInParent()
    index = None if is_named else message.idx
    name = message.name if is_named else ""
    signal = Signal(target, index, name, payload.SerializeToString(), kind == "failure")
    run.turn.send(target, signal)


def _complete_awakeable(run: Journaling, command: Append) -> None:
    message = pb.CompleteAwakeableCommandMessage.FromString(command.payload)
    parsed = parse_awakeable_id(message.awakeable_id)
    if parsed is None:
        return  # an id of journals too old for anyone here to wait for
    target, index = parsed
    failed = message.WhichOneof("result") == "failure"
    payload = pb.NotificationMessage(signal_idx=index)
    if failed:
        payload.failure.CopyFrom(message.failure)
    else:
        payload.value.content = message.value.content
    signal = Signal(target, index, "", payload.SerializeToString(), failed)
    run.turn.send(target, signal)


def _attach(run: Journaling, command: Append) -> None:
    message = pb.AttachInvocationCommandMessage.FromString(command.payload)
    sink = run.sink(message.result_completion_id, T.ATTACH_INVOCATION_COMPLETION)
    target = attach_target(message)
    run.turn.send(target, Attach(target, sink, True))


def _get_invocation_output(run: Journaling, command: Append) -> None:
    message = pb.GetInvocationOutputCommandMessage.FromString(command.payload)
    sink = run.sink(message.result_completion_id, T.GET_INVOCATION_OUTPUT_COMPLETION)
    target = attach_target(message)
    run.turn.send(target, Attach(target, sink, False))


def _complete_with(run: Journaling, type_code: int, completion_id: int, result: Result) -> None:
    payload = notifications.result(completion_id, result)
    run.tape.complete(type_code, completion_id, payload, isinstance(result, Failure))


# Commands that aren't here are only recorded: Output, the eager state reads, Run.
_EFFECTS: dict[int, Callable[[Journaling, Append], None]] = {
    T.GET_LAZY_STATE_COMMAND: _get_lazy_state,
    T.GET_LAZY_STATE_KEYS_COMMAND: _get_lazy_state_keys,
    T.SET_STATE_COMMAND: _set_state,
    T.CLEAR_STATE_COMMAND: _clear_state,
    T.CLEAR_ALL_STATE_COMMAND: _clear_all_state,
    T.GET_PROMISE_COMMAND: _get_promise,
    T.PEEK_PROMISE_COMMAND: _peek_promise,
    T.COMPLETE_PROMISE_COMMAND: _complete_promise,
    T.SLEEP_COMMAND: _sleep,
    T.CALL_COMMAND: _call,
    T.ONE_WAY_CALL_COMMAND: _one_way_call,
    T.SEND_SIGNAL_COMMAND: _send_signal,
    T.COMPLETE_AWAKEABLE_COMMAND: _complete_awakeable,
    T.ATTACH_INVOCATION_COMMAND: _attach,
    T.GET_INVOCATION_OUTPUT_COMMAND: _get_invocation_output,
}
