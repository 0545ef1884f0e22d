"""Journal entries as JSON texts, in the shapes that known clients decode. Pure.

``entry_json`` holds everything, payloads as lists of octets; ``entry_lite_json`` leaves payloads
out and reduces results to a word.
"""

from collections.abc import Callable
from typing import Any, cast

from google.protobuf.message import DecodeError, Message

from perdure.core.ids import format_invocation_id
from perdure.node.query.texts import Document, command_type, to_json
from perdure.proto import service_pb2 as pb
from perdure.proto.commands import COMMAND_MESSAGES
from perdure.proto.frames import MessageType as T
from perdure.proto.frames import is_command
from perdure.storage.tables.invocations import HandlerKind
from perdure.storage.tables.journal import CallInfo, Entry

_NO_SPAN: Document = {
    "span_context": {
        "trace_id": [0] * 16,
        "span_id": [0] * 8,
        "trace_flags": 0,
        "is_remote": False,
        "trace_state": "",
    },
    "cause": None,
}
_HANDLER_TYPES = {HandlerKind.EXCLUSIVE: "Exclusive", HandlerKind.WORKFLOW_RUN: "Workflow"}
_NAMED_IN_LITE = frozenset((T.RUN_COMMAND, T.SLEEP_COMMAND, T.CALL_COMMAND, T.ONE_WAY_CALL_COMMAND))
_CALLS = frozenset((T.CALL_COMMAND, T.ONE_WAY_CALL_COMMAND))
_VOID = "Void"


def entry_type(entry: Entry) -> str:
    """``Command: X`` or ``Notification: Y``."""
    kind = "Command" if is_command(entry.type) else "Notification"
    return f"{kind}: {command_type(entry.type)}"


def entry_name(entry: Entry) -> str | None:
    """What the author called a command, empty if nothing; None for notifications."""
    if not is_command(entry.type):
        return None
    message = _decode(entry)
    return "" if message is None else _name(message)


def entry_json(entry: Entry) -> str | None:
    """Everything in the entry; None when it can't be read."""
    message = _decode(entry)
    if message is None:
        return None
    kind = command_type(entry.type)
    if isinstance(message, pb.NotificationMessage):
        return to_json({"Notification": _notification(entry.type, kind, message)})
    fields = _FIELDS[entry.type](message, entry.call)
    fields["name"] = _name(message)
    return to_json({"Command": {kind: fields}})


def entry_lite_json(entry: Entry) -> str | None:
    """The entry without payloads; None when it can't be read."""
    message = _decode(entry)
    if message is None:
        return None
    kind = command_type(entry.type)
    if isinstance(message, pb.NotificationMessage):
        is_signal = entry.type == T.SIGNAL_NOTIFICATION
        return to_json(
            {
                "Notification": {
                    "ty": "Signal" if is_signal else {"Completion": kind},
                    "id": _notification_id(message),
                    "result": _LITE_RESULTS.get(message.WhichOneof("result") or "", _VOID),
                }
            }
        )
    fields = _lite_fields(entry, message)
    if entry.type in _NAMED_IN_LITE and (name := _name(message)):
        fields["name"] = name
    return to_json({"Command": {kind: fields}})


def _decode(entry: Entry) -> Message | None:
    kind = COMMAND_MESSAGES.get(entry.type)
    if kind is None:
        if is_command(entry.type):
            return None
        kind = pb.NotificationMessage
    try:
        return kind.FromString(entry.payload)
    except DecodeError:
        return None  # stored as it came: shown without what can't be read


def _name(message: Message) -> str:
    found = getattr(message, "entry_name" if isinstance(message, _SIGNAL) else "name", "")
    return found if isinstance(found, str) else ""


# --- Parts ----------------------------------------------------------------------------------------


def _octets(content: bytes) -> list[int]:
    return list(content)


def _failure(failure: pb.Failure) -> Document:
    document: Document = {"code": failure.code, "message": failure.message}
    if failure.metadata:
        document["metadata"] = {pair.key: pair.value for pair in failure.metadata}
    return {"Failure": document}


def _outcome(message: Any, oneof: str, prefix: str = "") -> str | Document:
    which = message.WhichOneof(oneof)
    if which == f"{prefix}failure":
        return _failure(getattr(message, which))
    if which == f"{prefix}value":
        return {"Success": _octets(getattr(message, which).content)}
    return _VOID


def _headers(message: Any) -> list[Document]:
    return [{"name": header.key, "value": header.value} for header in message.headers]


def _retention(ms: int) -> Document:
    return {"secs": ms // 1000, "nanos": ms % 1000 * 1_000_000}


def _target(message: Any, call: CallInfo | None) -> Document:
    handler = {"handler": message.handler_name, "scope": None}
    if call is None or call.key is None:
        return {"Service": {"name": message.service_name, **handler}}
    is_workflow = call.kind in (HandlerKind.WORKFLOW_RUN, HandlerKind.WORKFLOW_SHARED)
    document = {"name": message.service_name, "key": call.key, **handler}
    document["handler_ty"] = _HANDLER_TYPES.get(HandlerKind(call.kind), "Shared")
    return {"Workflow" if is_workflow else "VirtualObject": document}


def _request(message: Any, call: CallInfo | None) -> Document:
    return {
        "invocation_id": format_invocation_id(call.child) if call is not None else "",
        "invocation_target": _target(message, call),
        "span_context": _NO_SPAN,
        "parameter": _octets(message.parameter),
        "headers": _headers(message),
        "idempotency_key": message.idempotency_key or None,
        "completion_retention_duration": _retention(call.completion_retention_ms if call else 0),
        "journal_retention_duration": _retention(call.journal_retention_ms if call else 0),
    }


def _signal_id(message: Any, index: str, name: str) -> Document:
    if message.WhichOneof("id" if index == "signal_idx" else "signal_id") == name:
        return {"Name": getattr(message, name)}
    return {"Index": getattr(message, index)}


def _attach_target(message: Any) -> Document:
    match message.WhichOneof("target"):
        case "idempotent_request_target":
            wanted = message.idempotent_request_target
            return {
                "IdempotentRequest": {
                    "service_name": wanted.service_name,
                    "service_key": wanted.service_key or None,
                    "service_handler": wanted.handler_name,
                    "idempotency_key": wanted.idempotency_key,
                }
            }
        case "workflow_target":
            workflow = message.workflow_target
            return {
                "Workflow": {"service_name": workflow.workflow_name, "key": workflow.workflow_key}
            }
        case _:
            return {"InvocationId": message.invocation_id}


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


# --- Commands -----------------------------------------------------------------------------------


def _input(m: Any, call: CallInfo | None) -> Document:
    return {"headers": _headers(m), "payload": _octets(m.value.content)}


def _completion(m: Any, call: CallInfo | None) -> Document:
    return {"completion_id": m.result_completion_id}


def _state(m: Any, call: CallInfo | None) -> Document:
    return {"key": _text(m.key), "completion_id": m.result_completion_id}


def _promise(m: Any, call: CallInfo | None) -> Document:
    return {"key": m.key, "completion_id": m.result_completion_id}


def _complete_promise(m: Any, call: CallInfo | None) -> Document:
    value = _outcome(m, "completion", "completion_")
    return {"key": m.key, "value": value, "completion_id": m.result_completion_id}


def _call(m: Any, call: CallInfo | None) -> Document:
    return {
        "request": _request(m, call),
        "invocation_id_completion_id": m.invocation_id_notification_idx,
        "result_completion_id": m.result_completion_id,
    }


def _one_way_call(m: Any, call: CallInfo | None) -> Document:
    return {
        "request": _request(m, call),
        "invoke_time": m.invoke_time,
        "invocation_id_completion_id": m.invocation_id_notification_idx,
    }


def _send_signal(m: Any, call: CallInfo | None) -> Document:
    return {
        "target_invocation_id": m.target_invocation_id,
        "signal_id": _signal_id(m, "idx", "name"),
        "result": _outcome(m, "result"),
    }


def _attach(m: Any, call: CallInfo | None) -> Document:
    return {"target": _attach_target(m), "completion_id": m.result_completion_id}


_SIGNAL = pb.SendSignalCommandMessage
_FIELDS: dict[int, Callable[[Any, CallInfo | None], Document]] = {
    T.INPUT_COMMAND: _input,
    T.OUTPUT_COMMAND: lambda m, call: {"result": _outcome(m, "result")},
    T.GET_LAZY_STATE_COMMAND: _state,
    T.SET_STATE_COMMAND: lambda m, call: {"key": _text(m.key), "value": _octets(m.value.content)},
    T.CLEAR_STATE_COMMAND: lambda m, call: {"key": _text(m.key)},
    T.CLEAR_ALL_STATE_COMMAND: lambda m, call: {},
    T.GET_LAZY_STATE_KEYS_COMMAND: _completion,
    T.GET_EAGER_STATE_COMMAND: lambda m, call: {
        "key": _text(m.key),
        "result": _outcome(m, "result"),
    },
    T.GET_EAGER_STATE_KEYS_COMMAND: lambda m, call: {
        "state_keys": [_text(key) for key in m.value.keys]
    },
    T.GET_PROMISE_COMMAND: _promise,
    T.PEEK_PROMISE_COMMAND: _promise,
    T.COMPLETE_PROMISE_COMMAND: _complete_promise,
    T.SLEEP_COMMAND: lambda m, call: {
        "wake_up_time": m.wake_up_time,
        "completion_id": m.result_completion_id,
    },
    T.CALL_COMMAND: _call,
    T.ONE_WAY_CALL_COMMAND: _one_way_call,
    T.SEND_SIGNAL_COMMAND: _send_signal,
    T.RUN_COMMAND: _completion,
    T.ATTACH_INVOCATION_COMMAND: _attach,
    T.GET_INVOCATION_OUTPUT_COMMAND: _attach,
    T.COMPLETE_AWAKEABLE_COMMAND: lambda m, call: {
        "id": m.awakeable_id,
        "result": _outcome(m, "result"),
    },
}


def _lite_fields(entry: Entry, m: Any) -> Document:
    fields = _FIELDS[entry.type](m, None if entry.type not in _CALLS else entry.call)
    if entry.type in _CALLS:
        request = fields.pop("request")
        chosen = {name: request[name] for name in ("invocation_id", "invocation_target")}
        return {**chosen, **fields}
    for name in ("payload", "headers"):
        fields.pop(name, None)
    for name in ("result", "value"):
        found = fields.get(name)
        if isinstance(found, dict):
            fields[name] = next(iter(cast(Document, found)))
        elif isinstance(found, list):
            del fields[name]
    return fields


# --- Notifications --------------------------------------------------------------------------------

_LITE_RESULTS = {
    "value": "Success",
    "failure": "Failure",
    "invocation_id": "InvocationId",
    "state_keys": "StateKeys",
}


def _notification_id(message: pb.NotificationMessage) -> Document:
    match message.WhichOneof("id"):
        case "signal_idx":
            return {"SignalIndex": message.signal_idx}
        case "signal_name":
            return {"SignalName": message.signal_name}
        case _:
            return {"CompletionId": message.completion_id}


def _notification(type_code: int, kind: str, message: pb.NotificationMessage) -> Document:
    if type_code == T.SIGNAL_NOTIFICATION:
        identity = _signal_id(message, "signal_idx", "signal_name")
        return {"Signal": {"id": identity, "result": _outcome(message, "result")}}
    fields: Document = {"completion_id": message.completion_id}
    match message.WhichOneof("result"):
        case "invocation_id":
            fields["invocation_id"] = message.invocation_id
        case "state_keys":
            fields["state_keys"] = [_text(key) for key in message.state_keys.keys]
        case _ if type_code != T.SLEEP_COMPLETION:
            fields["result"] = _outcome(message, "result")
        case _:
            pass
    return {"Completion": {kind: fields}}
