"""Which commands a handler may send, and what a call resolves to, before anything is recorded.

A failed precondition fails the attempt, and nothing from that frame on is stored (spec 3.4).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from perdure.core.attempt_errors import (
    AttemptError,
    CommandPrecondition,
    DeprecatedDeployment,
    HandlerNotFound,
    ScopeUnsupported,
)
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy, ulid
from perdure.core.hashing import key_partition_key, service_bucket_partition_key
from perdure.core.ids import (
    IdError,
    InvocationId,
    make_invocation_id,
    parse_awakeable_id,
    parse_invocation_id,
)
from perdure.engine.journal import (
    attach_target,
    idempotent_invocation_id,
    workflow_invocation_id,
)
from perdure.node.registry.effective import Catalogue
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import MessageType as T
from perdure.storage.tables.invocations import HandlerKind, Target
from perdure.storage.tables.journal import CallInfo

_WRITERS = (HandlerKind.EXCLUSIVE, HandlerKind.WORKFLOW_RUN)
_WORKFLOWS = (HandlerKind.WORKFLOW_RUN, HandlerKind.WORKFLOW_SHARED)


@dataclass(frozen=True, slots=True)
class Callee:
    """Whom a handler calls. ``key`` is "" when none was given."""

    service: str
    handler: str
    key: str
    idempotency_key: str | None


class Resolver(Protocol):
    """Finds callees and names new invocations."""

    def resolve(self, callee: Callee) -> CallInfo:
        """Settle id, kind and retention of a call.

        Raises:
            AttemptError: there is no such handler, or it can't be called like this.
        """
        ...


class CatalogueResolver:
    """Resolves against the latest registered revisions."""

    def __init__(self, catalogue: Callable[[], Catalogue], clock: Clock, entropy: Entropy) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._entropy = entropy

    def resolve(self, callee: Callee) -> CallInfo:
        route = self._catalogue().latest(callee.service, callee.handler)
        if route is None:
            raise HandlerNotFound(
                f"the service handler {callee.service}/{callee.handler} was not found"
            )
        if not route.is_supported:
            raise DeprecatedDeployment(
                f"the service {callee.service} is exposed by the deprecated deployment "
                f"{route.deployment_id}."
            )
        kind = route.handler.kind
        key = None if kind == HandlerKind.SERVICE else callee.key
        if key is None and callee.key:
            raise CommandPrecondition(
                f"a key was provided, but the callee '{callee.service}' is a Service. "
                "Only VirtualObjects or Workflows accept a key"
            )
        if callee.idempotency_key == "":
            raise CommandPrecondition("the idempotency key provided in the request is empty")
        has_idempotency_key = (
            callee.idempotency_key is not None and kind != HandlerKind.WORKFLOW_RUN
        )
        target = Target(callee.service, callee.handler, key, kind)
        child = new_invocation_id(
            target,
            callee.idempotency_key if has_idempotency_key else None,
            self._clock,
            self._entropy,
        )
        completion, journal = route.effective.retention(kind, has_idempotency_key)
        return CallInfo(child, kind, key, completion, journal)


def new_invocation_id(
    target: Target, idempotency_key: str | None, clock: Clock, entropy: Entropy
) -> InvocationId:
    """The id of a new call: derived from its key where it has one, else random (spec 4.3)."""
    if target.kind == HandlerKind.WORKFLOW_RUN:
        assert target.key is not None
        return workflow_invocation_id(target.service, target.key)
    if idempotency_key is not None:
        return idempotent_invocation_id(target.service, target.key, target.handler, idempotency_key)
    partition_key = (
        service_bucket_partition_key(target.service, entropy.bits(9))
        if target.key is None
        else key_partition_key(target.key)
    )
    return make_invocation_id(partition_key, ulid(clock.now_ms(), entropy))


def check_command(type_code: int, payload: bytes, kind: int, resolver: Resolver) -> CallInfo | None:
    """Check a command of a handler of ``kind``; the resolution of a call.

    Raises:
        AttemptError: the command is not allowed, or malformed.
    """
    check = _CHECKS.get(type_code)
    if check is None:
        raise AttemptError("services don't send this message")
    try:
        return check(payload, kind, resolver)
    except DecodeError as error:
        raise AttemptError("it can't be decoded") from error
    except UnicodeDecodeError as error:
        raise AttemptError("a state key is not UTF-8") from error


def command_name(type_code: int) -> str:
    """A command's type in words, as errors name it."""
    return _name(type_code)


def _name(type_code: int) -> str:
    try:
        words = T(type_code).name.removesuffix("_COMMAND").split("_")
    except ValueError:
        return f"0x{type_code:04x}"
    return "".join(word.capitalize() for word in words)


# --- One check per command ----------------------------------------------------------------------


def _run(payload: bytes, kind: int, resolver: Resolver) -> None:
    pb.RunCommandMessage.FromString(payload)


def _sleep(payload: bytes, kind: int, resolver: Resolver) -> None:
    pb.SleepCommandMessage.FromString(payload)


def _output(payload: bytes, kind: int, resolver: Resolver) -> None:
    message = pb.OutputCommandMessage.FromString(payload)
    if message.WhichOneof("result") is None:
        raise AttemptError("the Output has no result")


def _reads_state(payload: bytes, kind: int, resolver: Resolver) -> None:
    if kind == HandlerKind.SERVICE:
        raise CommandPrecondition(
            "unsupported entry type, this service type doesn't have state access"
        )


def _reads_key(payload: bytes, kind: int, resolver: Resolver) -> None:
    _reads_state(payload, kind, resolver)
    pb.GetLazyStateCommandMessage.FromString(payload).key.decode()


def _writes_state(kind: int) -> None:
    if kind == HandlerKind.SERVICE:
        raise CommandPrecondition(
            "unsupported entry type, this service type doesn't have state access"
        )
    if kind not in _WRITERS:
        raise CommandPrecondition("unsupported entry type, this handler type cannot write state")


def _set_state(payload: bytes, kind: int, resolver: Resolver) -> None:
    _writes_state(kind)
    pb.SetStateCommandMessage.FromString(payload).key.decode()


def _clear_state(payload: bytes, kind: int, resolver: Resolver) -> None:
    _writes_state(kind)
    pb.ClearStateCommandMessage.FromString(payload).key.decode()


def _clear_all_state(payload: bytes, kind: int, resolver: Resolver) -> None:
    _writes_state(kind)


def _promise(payload: bytes, kind: int, resolver: Resolver) -> None:
    if kind not in _WORKFLOWS:
        raise CommandPrecondition("unsupported entry type, only Workflow services support it")
    pb.GetPromiseCommandMessage.FromString(payload)


def _complete_promise(payload: bytes, kind: int, resolver: Resolver) -> None:
    if kind not in _WORKFLOWS:
        raise CommandPrecondition("unsupported entry type, only Workflow services support it")
    message = pb.CompletePromiseCommandMessage.FromString(payload)
    if message.WhichOneof("completion") is None:
        raise AttemptError("the CompletePromise has no completion")


def _call(payload: bytes, kind: int, resolver: Resolver) -> CallInfo:
    return _resolve(pb.CallCommandMessage.FromString(payload), resolver)


def _one_way_call(payload: bytes, kind: int, resolver: Resolver) -> CallInfo:
    return _resolve(pb.OneWayCallCommandMessage.FromString(payload), resolver)


def _resolve(
    message: pb.CallCommandMessage | pb.OneWayCallCommandMessage, resolver: Resolver
) -> CallInfo:
    if message.scope or message.limit_key:
        raise ScopeUnsupported("scopes and limit keys are not available on this server")
    idempotency_key = message.idempotency_key if message.HasField("idempotency_key") else None
    return resolver.resolve(
        Callee(message.service_name, message.handler_name, message.key, idempotency_key)
    )


def _send_signal(payload: bytes, kind: int, resolver: Resolver) -> None:
    message = pb.SendSignalCommandMessage.FromString(payload)
    if message.WhichOneof("signal_id") is None:
        raise AttemptError("the SendSignal names no signal")
    _check_id(message.target_invocation_id, parse_invocation_id)


def _attach(payload: bytes, kind: int, resolver: Resolver) -> None:
    message = pb.AttachInvocationCommandMessage.FromString(payload)
    target = message.WhichOneof("target")
    if (target == "workflow_target" and message.workflow_target.scope) or (
        target == "idempotent_request_target" and message.idempotent_request_target.scope
    ):
        raise ScopeUnsupported("scopes and limit keys are not available on this server")
    try:
        attach_target(message)
    except IdError as error:
        raise CommandPrecondition(
            f"invalid invocation id {message.invocation_id}: {error}"
        ) from error


def _complete_awakeable(payload: bytes, kind: int, resolver: Resolver) -> None:
    message = pb.CompleteAwakeableCommandMessage.FromString(payload)
    if message.WhichOneof("result") is None:
        raise AttemptError("the CompleteAwakeable has no result")
    _check_id(message.awakeable_id, parse_awakeable_id)


def _check_id(text: str, parse: Callable[[str], object]) -> None:
    try:
        parse(text)
    except IdError as error:
        raise CommandPrecondition(f"invalid id {text}: {error}") from error


_CHECKS: dict[int, Callable[[bytes, int, Resolver], CallInfo | None]] = {
    T.OUTPUT_COMMAND: _output,
    T.GET_LAZY_STATE_COMMAND: _reads_key,
    T.SET_STATE_COMMAND: _set_state,
    T.CLEAR_STATE_COMMAND: _clear_state,
    T.CLEAR_ALL_STATE_COMMAND: _clear_all_state,
    T.GET_LAZY_STATE_KEYS_COMMAND: _reads_state,
    T.GET_EAGER_STATE_COMMAND: _reads_key,
    T.GET_EAGER_STATE_KEYS_COMMAND: _reads_state,
    T.GET_PROMISE_COMMAND: _promise,
    T.PEEK_PROMISE_COMMAND: _promise,
    T.COMPLETE_PROMISE_COMMAND: _complete_promise,
    T.SLEEP_COMMAND: _sleep,
    T.CALL_COMMAND: _call,
    T.ONE_WAY_CALL_COMMAND: _one_way_call,
    T.SEND_SIGNAL_COMMAND: _send_signal,
    T.RUN_COMMAND: _run,
    T.ATTACH_INVOCATION_COMMAND: _attach,
    T.GET_INVOCATION_OUTPUT_COMMAND: _attach,
    T.COMPLETE_AWAKEABLE_COMMAND: _complete_awakeable,
}
