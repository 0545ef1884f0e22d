"""Completing awakeables from outside: the Signal command of a resolve or a reject. Pure."""

from perdure.core.ids import InvocationId
from perdure.engine.commands import Signal
from perdure.engine.notifications import encode_failure
from perdure.proto import service_pb2 as pb
from perdure.storage.tables.invocations import Failure

_REJECTED_CODE = 500


def make_signal(invocation: InvocationId, index: int, is_resolve: bool, body: bytes) -> Signal:
    """Resolved with the body's bytes, or rejected with its text as a terminal error."""
    message = pb.NotificationMessage(signal_idx=index)
    if is_resolve:
        message.value.content = body
    else:
        reason = Failure(_REJECTED_CODE, body.decode(errors="replace"))
        message.failure.CopyFrom(encode_failure(reason))
    return Signal(invocation, index, "", message.SerializeToString(), not is_resolve)
