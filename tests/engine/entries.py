"""What services send, as effects: one short function per command of the service protocol."""

from perdure.core.ids import InvocationId, format_invocation_id
from perdure.engine.commands import Append, CompleteRun
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import MessageType as T
from perdure.storage.tables.invocations import HandlerKind, Target
from perdure.storage.tables.journal import CallInfo

DAY_MS = 24 * 3600 * 1000


def output(value: bytes = b"ok") -> Append:
    message = pb.OutputCommandMessage(value=pb.Value(content=value))
    return Append(T.OUTPUT_COMMAND, message.SerializeToString())


def output_failure(code: int, text: str, **metadata: str) -> Append:
    failure = pb.Failure(
        code=code,
        message=text,
        metadata=[pb.FailureMetadata(key=key, value=value) for key, value in metadata.items()],
    )
    message = pb.OutputCommandMessage(failure=failure)
    return Append(T.OUTPUT_COMMAND, message.SerializeToString())


def run(completion_id: int, name: str = "") -> Append:
    message = pb.RunCommandMessage(result_completion_id=completion_id, name=name)
    return Append(T.RUN_COMMAND, message.SerializeToString())


def run_result(completion_id: int, value: bytes) -> CompleteRun:
    message = pb.NotificationMessage(completion_id=completion_id, value=pb.Value(content=value))
    return CompleteRun(completion_id, message.SerializeToString(), False)


def run_failure(completion_id: int, code: int, text: str) -> CompleteRun:
    message = pb.NotificationMessage(
        completion_id=completion_id, failure=pb.Failure(code=code, message=text)
    )
    return CompleteRun(completion_id, message.SerializeToString(), True)


def sleep(completion_id: int, until_ms: int) -> Append:
    message = pb.SleepCommandMessage(wake_up_time=until_ms, result_completion_id=completion_id)
    return Append(T.SLEEP_COMMAND, message.SerializeToString())


def get_state(completion_id: int, key: bytes) -> Append:
    message = pb.GetLazyStateCommandMessage(key=key, result_completion_id=completion_id)
    return Append(T.GET_LAZY_STATE_COMMAND, message.SerializeToString())


def get_state_keys(completion_id: int) -> Append:
    message = pb.GetLazyStateKeysCommandMessage(result_completion_id=completion_id)
    return Append(T.GET_LAZY_STATE_KEYS_COMMAND, message.SerializeToString())


def get_eager_state(key: bytes, value: bytes | None) -> Append:
    message = pb.GetEagerStateCommandMessage(key=key)
    if value is None:
        message.void.SetInParent()
    else:
        message.value.CopyFrom(pb.Value(content=value))
    return Append(T.GET_EAGER_STATE_COMMAND, message.SerializeToString())


def set_state(key: bytes, value: bytes) -> Append:
    message = pb.SetStateCommandMessage(key=key, value=pb.Value(content=value))
    return Append(T.SET_STATE_COMMAND, message.SerializeToString())


def clear_state(key: bytes) -> Append:
    message = pb.ClearStateCommandMessage(key=key)
    return Append(T.CLEAR_STATE_COMMAND, message.SerializeToString())


def clear_all_state() -> Append:
    return Append(T.CLEAR_ALL_STATE_COMMAND, b"")


def get_promise(completion_id: int, name: str) -> Append:
    message = pb.GetPromiseCommandMessage(key=name, result_completion_id=completion_id)
    return Append(T.GET_PROMISE_COMMAND, message.SerializeToString())


def peek_promise(completion_id: int, name: str) -> Append:
    message = pb.PeekPromiseCommandMessage(key=name, result_completion_id=completion_id)
    return Append(T.PEEK_PROMISE_COMMAND, message.SerializeToString())


def resolve_promise(completion_id: int, name: str, value: bytes) -> Append:
    message = pb.CompletePromiseCommandMessage(
        key=name, result_completion_id=completion_id, completion_value=pb.Value(content=value)
    )
    return Append(T.COMPLETE_PROMISE_COMMAND, message.SerializeToString())


def reject_promise(completion_id: int, name: str, code: int, text: str) -> Append:
    message = pb.CompletePromiseCommandMessage(
        key=name,
        result_completion_id=completion_id,
        completion_failure=pb.Failure(code=code, message=text),
    )
    return Append(T.COMPLETE_PROMISE_COMMAND, message.SerializeToString())


def call(
    completion_id: int,
    child: InvocationId,
    target: Target,
    parameter: bytes = b"",
    *,
    idempotency_key: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
    retention: tuple[int, int] = (DAY_MS, DAY_MS),
) -> Append:
    """A call whose invocation id comes under ``completion_id - 1``."""
    message = pb.CallCommandMessage(
        service_name=target.service,
        handler_name=target.handler,
        key=target.key or "",
        parameter=parameter,
        headers=[pb.Header(key=name, value=value) for name, value in headers],
        idempotency_key=idempotency_key,
        invocation_id_notification_idx=completion_id - 1,
        result_completion_id=completion_id,
    )
    info = CallInfo(child, target.kind, target.key, *retention)
    return Append(T.CALL_COMMAND, message.SerializeToString(), info)


def send(
    id_completion: int,
    child: InvocationId,
    target: Target,
    parameter: bytes = b"",
    *,
    invoke_time: int = 0,
    retention: tuple[int, int] = (DAY_MS, DAY_MS),
) -> Append:
    message = pb.OneWayCallCommandMessage(
        service_name=target.service,
        handler_name=target.handler,
        key=target.key or "",
        parameter=parameter,
        invoke_time=invoke_time,
        invocation_id_notification_idx=id_completion,
    )
    info = CallInfo(child, target.kind, target.key, *retention)
    return Append(T.ONE_WAY_CALL_COMMAND, message.SerializeToString(), info)


def send_signal(target: InvocationId, signal: int | str, value: bytes | None = None) -> Append:
    message = pb.SendSignalCommandMessage(target_invocation_id=format_invocation_id(target))
    if isinstance(signal, int):
        message.idx = signal
    else:
        message.name = signal
    if value is None:
        message.void.SetInParent()
    else:
        message.value.CopyFrom(pb.Value(content=value))
    return Append(T.SEND_SIGNAL_COMMAND, message.SerializeToString())


def fail_signal(target: InvocationId, signal: int, code: int, text: str) -> Append:
    message = pb.SendSignalCommandMessage(
        target_invocation_id=format_invocation_id(target),
        idx=signal,
        failure=pb.Failure(code=code, message=text),
    )
    return Append(T.SEND_SIGNAL_COMMAND, message.SerializeToString())


def resolve_awakeable(awakeable: str, value: bytes) -> Append:
    message = pb.CompleteAwakeableCommandMessage(awakeable_id=awakeable)
    message.value.CopyFrom(pb.Value(content=value))
    return Append(T.COMPLETE_AWAKEABLE_COMMAND, message.SerializeToString())


def reject_awakeable(awakeable: str, code: int, text: str) -> Append:
    message = pb.CompleteAwakeableCommandMessage(
        awakeable_id=awakeable, failure=pb.Failure(code=code, message=text)
    )
    return Append(T.COMPLETE_AWAKEABLE_COMMAND, message.SerializeToString())


def attach(completion_id: int, target: InvocationId) -> Append:
    message = pb.AttachInvocationCommandMessage(
        invocation_id=format_invocation_id(target), result_completion_id=completion_id
    )
    return Append(T.ATTACH_INVOCATION_COMMAND, message.SerializeToString())


def get_output(completion_id: int, target: InvocationId) -> Append:
    message = pb.GetInvocationOutputCommandMessage(
        invocation_id=format_invocation_id(target), result_completion_id=completion_id
    )
    return Append(T.GET_INVOCATION_OUTPUT_COMMAND, message.SerializeToString())


def get_output_of(completion_id: int, target: Target, idempotency_key: str) -> Append:
    """By the call's idempotency key rather than its id."""
    wanted = pb.IdempotentRequestTarget(
        service_name=target.service,
        service_key=target.key,
        handler_name=target.handler,
        idempotency_key=idempotency_key,
    )
    message = pb.GetInvocationOutputCommandMessage(
        idempotent_request_target=wanted, result_completion_id=completion_id
    )
    return Append(T.GET_INVOCATION_OUTPUT_COMMAND, message.SerializeToString())


def attach_workflow(completion_id: int, service: str, key: str) -> Append:
    message = pb.AttachInvocationCommandMessage(
        workflow_target=pb.WorkflowTarget(workflow_name=service, workflow_key=key),
        result_completion_id=completion_id,
    )
    return Append(T.ATTACH_INVOCATION_COMMAND, message.SerializeToString())


SERVICE = Target("Svc", "greet", None, HandlerKind.SERVICE)
OTHER = Target("Other", "work", None, HandlerKind.SERVICE)


def exclusive(key: str, handler: str = "add") -> Target:
    return Target("Counter", handler, key, HandlerKind.EXCLUSIVE)


def shared(key: str, handler: str = "get") -> Target:
    return Target("Counter", handler, key, HandlerKind.SHARED)


def workflow(key: str) -> Target:
    return Target("Signup", "run", key, HandlerKind.WORKFLOW_RUN)


def workflow_shared(key: str, handler: str = "click") -> Target:
    return Target("Signup", handler, key, HandlerKind.WORKFLOW_SHARED)
