"""Frames as words and words as frames, for scripts and transcripts."""

from google.protobuf import text_format
from google.protobuf.message import Message

from perdure.proto import service_pb2 as pb
from perdure.proto.frames import REQUESTED_ACK, Frame, MessageType, encode_frame
from perdure.storage.tables.futures import Combinator, Future

_MESSAGES: dict[MessageType, type[Message]] = {
    MessageType.START: pb.StartMessage,
    MessageType.SUSPENSION: pb.SuspensionMessage,
    MessageType.ERROR: pb.ErrorMessage,
    MessageType.END: pb.EndMessage,
    MessageType.COMMAND_ACK: pb.CommandAckMessage,
    MessageType.PROPOSE_RUN_COMPLETION: pb.ProposeRunCompletionMessage,
    MessageType.AWAITING_ON: pb.AwaitingOnMessage,
    MessageType.PROPOSE_RUN_COMPLETION_ACK: pb.ProposeRunCompletionAckMessage,
    MessageType.INPUT_COMMAND: pb.InputCommandMessage,
    MessageType.OUTPUT_COMMAND: pb.OutputCommandMessage,
    MessageType.GET_LAZY_STATE_COMMAND: pb.GetLazyStateCommandMessage,
    MessageType.SET_STATE_COMMAND: pb.SetStateCommandMessage,
    MessageType.CLEAR_STATE_COMMAND: pb.ClearStateCommandMessage,
    MessageType.CLEAR_ALL_STATE_COMMAND: pb.ClearAllStateCommandMessage,
    MessageType.GET_LAZY_STATE_KEYS_COMMAND: pb.GetLazyStateKeysCommandMessage,
    MessageType.GET_EAGER_STATE_COMMAND: pb.GetEagerStateCommandMessage,
    MessageType.GET_EAGER_STATE_KEYS_COMMAND: pb.GetEagerStateKeysCommandMessage,
    MessageType.GET_PROMISE_COMMAND: pb.GetPromiseCommandMessage,
    MessageType.PEEK_PROMISE_COMMAND: pb.PeekPromiseCommandMessage,
    MessageType.COMPLETE_PROMISE_COMMAND: pb.CompletePromiseCommandMessage,
    MessageType.SLEEP_COMMAND: pb.SleepCommandMessage,
    MessageType.CALL_COMMAND: pb.CallCommandMessage,
    MessageType.ONE_WAY_CALL_COMMAND: pb.OneWayCallCommandMessage,
    MessageType.SEND_SIGNAL_COMMAND: pb.SendSignalCommandMessage,
    MessageType.RUN_COMMAND: pb.RunCommandMessage,
    MessageType.ATTACH_INVOCATION_COMMAND: pb.AttachInvocationCommandMessage,
    MessageType.GET_INVOCATION_OUTPUT_COMMAND: pb.GetInvocationOutputCommandMessage,
    MessageType.COMPLETE_AWAKEABLE_COMMAND: pb.CompleteAwakeableCommandMessage,
}


def name(type_code: int) -> str:
    """``Run`` for a Run command, ``RunCompletion`` for its notification."""
    text = MessageType(type_code).name.removesuffix("_COMMAND")
    return "".join(word.capitalize() for word in text.split("_"))


_TYPES = {name(kind): kind for kind in MessageType}


def frame(received: Frame) -> str:
    """A frame of the server in words."""
    kind = MessageType(received.type)
    message = _MESSAGES.get(kind, pb.NotificationMessage).FromString(received.payload)
    if isinstance(message, pb.StartMessage):
        return _start(message)
    text = text_format.MessageToString(message, as_one_line=True).strip()
    flag = " +ack" if received.flags & REQUESTED_ACK else ""
    return f"{name(kind)} {{{text}}}{flag}" if text else f"{name(kind)}{flag}"


def parse(line: str) -> bytes:
    """A frame of the service: ``<Name> <text format>``, with ``+ack`` at its end for the flag."""
    head, _, rest = line.partition(" ")
    flags = 0
    if rest.endswith("+ack"):
        flags = REQUESTED_ACK
        rest = rest.removesuffix("+ack")
    kind = _TYPES[head]
    message = _MESSAGES.get(kind, pb.NotificationMessage)()
    text_format.Parse(rest, message)
    return encode_frame(kind, message.SerializeToString(), flags)


def _start(message: pb.StartMessage) -> str:
    parts = [f"known {message.known_entries}"]
    if message.partial_state:
        parts.append("partial")
    for entry in message.state_map:
        parts.append(f"{entry.key.decode()}={entry.value.decode()}")
    if message.retry_count_since_last_stored_entry:
        parts.append(f"retry {message.retry_count_since_last_stored_entry}")
    if message.duration_since_last_stored_entry:
        parts.append(f"duration {message.duration_since_last_stored_entry}")
    if message.HasField("idempotency_key"):
        parts.append(f"idempotency key {message.idempotency_key}")
    return f"Start {{{', '.join(parts)}}}"


def future(awaiting: Future) -> str:
    """What a suspension waits for."""
    leaves = [
        *map(str, awaiting.completions),
        *(f"#{index}" for index in awaiting.signals),
        *awaiting.names,
        *(future(nested) for nested in awaiting.nested),
    ]
    return f"{Combinator(awaiting.combinator).name.lower()}({', '.join(leaves)})"
