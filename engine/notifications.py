"""Payloads of the notifications that the server itself makes, in the bytes SDKs expect.

The result oneof is never left out: an empty value is a Value of length 0, absence is Void.
"""

from perdure.proto import service_pb2 as pb
from perdure.storage.tables.invocations import Failure, Result, Success

CANCEL_SIGNAL = 1


def void(completion_id: int) -> bytes:
    """A completion without a value."""
    return pb.NotificationMessage(completion_id=completion_id, void=pb.Void()).SerializeToString()


def value(completion_id: int, content: bytes) -> bytes:
    """A completion with a value."""
    message = pb.NotificationMessage(completion_id=completion_id, value=pb.Value(content=content))
    return message.SerializeToString()


def failure(completion_id: int, code: int, text: str) -> bytes:
    """A completion with a terminal error of the server's own."""
    return result(completion_id, Failure(code, text))


def result(completion_id: int, outcome: Result) -> bytes:
    """A completion with an invocation's or a promise's result. Stack traces don't travel."""
    if isinstance(outcome, Success):
        return value(completion_id, outcome.value)
    message = pb.NotificationMessage(completion_id=completion_id, failure=encode_failure(outcome))
    return message.SerializeToString()


def invocation_id(completion_id: int, text: str) -> bytes:
    """The id of the child that a call created."""
    message = pb.NotificationMessage(completion_id=completion_id, invocation_id=text)
    return message.SerializeToString()


def state_keys(completion_id: int, keys: list[bytes]) -> bytes:
    """All state keys, ascending; the field is there even when the list is empty."""
    message = pb.NotificationMessage(
        completion_id=completion_id, state_keys=pb.StateKeys(keys=keys)
    )
    return message.SerializeToString()


def cancel_signal() -> bytes:
    """The built-in signal 1."""
    return pb.NotificationMessage(signal_idx=CANCEL_SIGNAL, void=pb.Void()).SerializeToString()


def input_entry(headers: list[tuple[str, str]], body: bytes) -> bytes:
    """Payload of an invocation's Input entry."""
    message = pb.InputCommandMessage(
        headers=[pb.Header(key=name, value=text) for name, text in headers],
        value=pb.Value(content=body),
    )
    return message.SerializeToString()


def encode_failure(outcome: Failure) -> pb.Failure:
    """A failure as a message."""
    return pb.Failure(
        code=outcome.code,
        message=outcome.message,
        metadata=[pb.FailureMetadata(key=name, value=text) for name, text in outcome.metadata],
    )


def decode_failure(message: pb.Failure) -> Failure:
    """A failure from a message; codes beyond 16 bits become 500 (spec 7.1, trap 20)."""
    code = message.code if message.code <= 0xFFFF else 500
    return Failure(code, message.message, tuple((m.key, m.value) for m in message.metadata))


def output_result(payload: bytes) -> Result | None:
    """The result in an Output entry; None when the SDK left it out."""
    message = pb.OutputCommandMessage.FromString(payload)
    match message.WhichOneof("result"):
        case "value":
            return Success(message.value.content)
        case "failure":
            return decode_failure(message.failure)
        case _:
            return None
