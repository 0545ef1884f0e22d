"""Which commands a handler may send, by kind of handler, and how calls are resolved."""

import pytest
from tests.engine import entries as e

from perdure.core.attempt_errors import (
    AttemptError,
    CommandPrecondition,
    DeprecatedDeployment,
    HandlerNotFound,
    ScopeUnsupported,
)
from perdure.core.hashing import key_partition_key, service_bucket_partition_key
from perdure.core.ids import format_awakeable_id, partition_key_of
from perdure.engine.commands import Append
from perdure.engine.journal import idempotent_invocation_id, workflow_invocation_id
from perdure.node.invoker.validation import (
    Callee,
    CatalogueResolver,
    check_command,
    command_name,
    new_invocation_id,
)
from perdure.node.registry.effective import Catalogue, Defaults
from perdure.node.registry.model import (
    Deployment,
    Handler,
    InputRules,
    Options,
    OutputRules,
    Registry,
    Service,
    ServiceType,
)
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import MessageType as T
from perdure.storage.tables.invocations import HandlerKind, Target

K = HandlerKind
KEYED = (K.EXCLUSIVE, K.SHARED, K.WORKFLOW_RUN, K.WORKFLOW_SHARED)
WRITERS = (K.EXCLUSIVE, K.WORKFLOW_RUN)
WORKFLOWS = (K.WORKFLOW_RUN, K.WORKFLOW_SHARED)
EVERYONE = tuple(K)


class Clock:
    def now_ms(self) -> int:
        return 1_700_000_000_000

    def monotonic(self) -> float:
        return 0.0


class Dice:
    """Always the same throw."""

    def bits(self, count: int) -> int:
        return 5

    def jitter(self, upper: float) -> float:
        return 0.0


def service(name: str, kind: ServiceType, **handlers: int) -> Service:
    options = Options(journal_retention_ms=1000, workflow_completion_retention_ms=9000)
    made = {
        handler: Handler(handler, number, InputRules(is_open=True), OutputRules())
        for handler, number in handlers.items()
    }
    return Service(name, kind, made, options=options)


def registry() -> Registry:
    services = [
        service("Svc", ServiceType.SERVICE, greet=K.SERVICE),
        service("Obj", ServiceType.VIRTUAL_OBJECT, add=K.EXCLUSIVE, get=K.SHARED),
        service("Flow", ServiceType.WORKFLOW, run=K.WORKFLOW_RUN, click=K.WORKFLOW_SHARED),
    ]
    old = service("Old", ServiceType.SERVICE, greet=K.SERVICE)
    deployments = {
        "dp_new": Deployment(
            "dp_new", "http://h", "HTTP/2.0", True, 5, 7, 0, {s.name: s for s in services}
        ),
        "dp_old": Deployment("dp_old", "http://h", "HTTP/2.0", True, 1, 4, 0, {"Old": old}),
    }
    latest = {**dict.fromkeys(("Svc", "Obj", "Flow"), "dp_new"), "Old": "dp_old"}
    return Registry(deployments, latest)


CATALOGUE = Catalogue(registry(), Defaults())
RESOLVER = CatalogueResolver(lambda: CATALOGUE, Clock(), Dice())
SOMEBODY = workflow_invocation_id("Flow", "k")


def check(command: Append, kind: int = K.SERVICE) -> None:
    check_command(command.type_code, command.payload, kind, RESOLVER)


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        (e.run(1), EVERYONE),
        (e.sleep(1, 1), EVERYONE),
        (e.output(), EVERYONE),
        (e.output_failure(418, "x"), EVERYONE),
        (e.send_signal(SOMEBODY, 17), EVERYONE),
        (e.attach(1, SOMEBODY), EVERYONE),
        (e.get_output(1, SOMEBODY), EVERYONE),
        (e.attach_workflow(1, "Flow", "k"), EVERYONE),
        (e.get_output_of(1, Target("Obj", "add", "k", 1), "i"), EVERYONE),
        (e.resolve_awakeable(format_awakeable_id(SOMEBODY, 17), b""), EVERYONE),
        (e.call(2, SOMEBODY, Target("Svc", "greet", None, 0)), EVERYONE),
        (e.send(2, SOMEBODY, Target("Obj", "add", "", 1)), EVERYONE),
        (e.get_state(1, b"k"), KEYED),
        (e.get_state_keys(1), KEYED),
        (e.get_eager_state(b"k", None), KEYED),
        (Append(T.GET_EAGER_STATE_KEYS_COMMAND, b""), KEYED),
        (e.set_state(b"k", b""), WRITERS),
        (e.clear_state(b"k"), WRITERS),
        (e.clear_all_state(), WRITERS),
        (e.get_promise(1, "p"), WORKFLOWS),
        (e.peek_promise(1, "p"), WORKFLOWS),
        (e.resolve_promise(1, "p", b""), WORKFLOWS),
        (e.reject_promise(1, "p", 1, ""), WORKFLOWS),
    ],
    ids=lambda value: command_name(value.type_code) if isinstance(value, Append) else "",
)
@pytest.mark.parametrize("kind", EVERYONE)
def test_who_may_send_what(command: Append, allowed: tuple[int, ...], kind: int) -> None:
    if kind in allowed:
        check(command, kind)
    else:
        with pytest.raises(CommandPrecondition, match="unsupported entry type"):
            check(command, kind)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (Append(T.INPUT_COMMAND, b""), "don't send"),
        (Append(0x040F, b""), "don't send"),
        (Append(0x7FFF, b""), "don't send"),
        (Append(T.OUTPUT_COMMAND, b""), "no result"),
        (Append(T.RUN_COMMAND, b"\xff"), "decoded"),
        (Append(T.SEND_SIGNAL_COMMAND, b""), "names no signal"),
        (e.send_signal(SOMEBODY, "n"), None),
        (Append(T.COMPLETE_AWAKEABLE_COMMAND, b""), "no result"),
        (Append(T.ATTACH_INVOCATION_COMMAND, b""), "no target"),
        (e.resolve_awakeable("sign_1zz", b""), "bad length"),
        (e.resolve_awakeable("prom_1zLGBtA1oKtvphDCDeoVNMkyIxrnZiezqAAAAEg", b""), None),
        (e.send(1, SOMEBODY, Target("Nobody", "greet", None, 0)), "Nobody/greet was not found"),
        (e.send(1, SOMEBODY, Target("Svc", "Greet", None, 0)), "Svc/Greet was not found"),
        (e.send(1, SOMEBODY, Target("Svc", "greet", "k", 0)), "is a Service"),
        (e.send(1, SOMEBODY, Target("Old", "greet", None, 0)), "deprecated deployment dp_old"),
    ],
)
def test_malformed_commands(command: Append, text: str | None) -> None:
    if text is None:
        check(command)
    else:
        with pytest.raises(AttemptError, match=text):
            check(command)


def test_state_keys_are_text() -> None:
    with pytest.raises(AttemptError, match="UTF-8"):
        check(e.set_state(b"\xff", b""), K.EXCLUSIVE)
    with pytest.raises(AttemptError, match="UTF-8"):
        check(e.get_state(1, b"\xff"), K.SHARED)


def test_promise_without_a_completion() -> None:
    with pytest.raises(AttemptError, match="no completion"):
        check(Append(T.COMPLETE_PROMISE_COMMAND, b""), K.WORKFLOW_RUN)


@pytest.mark.parametrize(
    "message",
    [
        pb.CallCommandMessage(service_name="Svc", handler_name="greet", scope="s"),
        pb.CallCommandMessage(service_name="Svc", handler_name="greet", limit_key="l"),
    ],
)
def test_scopes_are_refused_and_empty_ones_are_none(message: pb.CallCommandMessage) -> None:
    with pytest.raises(ScopeUnsupported):
        check(Append(T.CALL_COMMAND, message.SerializeToString()))
    empty = pb.CallCommandMessage(service_name="Svc", handler_name="greet", scope="", limit_key="")
    check(Append(T.CALL_COMMAND, empty.SerializeToString()))


def test_scope_of_an_attach_is_refused() -> None:
    target = pb.WorkflowTarget(workflow_name="Flow", workflow_key="k", scope="s")
    message = pb.AttachInvocationCommandMessage(workflow_target=target)
    with pytest.raises(ScopeUnsupported):
        check(Append(T.ATTACH_INVOCATION_COMMAND, message.SerializeToString()))


# --- Resolution -----------------------------------------------------------------------------------

DAY = e.DAY_MS


@pytest.mark.parametrize(
    ("callee", "kind", "key", "retention"),
    [
        (Callee("Svc", "greet", "", None), K.SERVICE, None, (1000, 1000)),
        (Callee("Svc", "greet", "", "i"), K.SERVICE, None, (DAY, 1000)),
        (Callee("Obj", "add", "k", None), K.EXCLUSIVE, "k", (1000, 1000)),
        (Callee("Obj", "get", "", "i"), K.SHARED, "", (DAY, 1000)),
        (Callee("Flow", "run", "k", None), K.WORKFLOW_RUN, "k", (9000, 1000)),
        (Callee("Flow", "run", "k", "i"), K.WORKFLOW_RUN, "k", (9000, 1000)),
        (Callee("Flow", "click", "k", "i"), K.WORKFLOW_SHARED, "k", (DAY, 1000)),
    ],
)
def test_resolution(callee: Callee, kind: int, key: str | None, retention: tuple[int, int]) -> None:
    info = RESOLVER.resolve(callee)
    assert (info.kind, info.key) == (kind, key)
    assert (info.completion_retention_ms, info.journal_retention_ms) == retention
    if kind == K.WORKFLOW_RUN:
        assert info.child == workflow_invocation_id("Flow", "k")
    elif callee.idempotency_key is not None:
        assert info.child == idempotent_invocation_id(callee.service, key, callee.handler, "i")
    else:
        expected = service_bucket_partition_key("Svc", 5) if key is None else key_partition_key(key)
        assert partition_key_of(info.child) == expected


@pytest.mark.parametrize(
    ("callee", "error"),
    [
        (Callee("Nobody", "h", "", None), HandlerNotFound),
        (Callee("Old", "greet", "", None), DeprecatedDeployment),
        (Callee("Svc", "greet", "k", None), CommandPrecondition),
        (Callee("Svc", "greet", "", ""), CommandPrecondition),
    ],
)
def test_refusals(callee: Callee, error: type[AttemptError]) -> None:
    with pytest.raises(error):
        RESOLVER.resolve(callee)


def test_random_ids_carry_the_time() -> None:
    id = new_invocation_id(Target("Obj", "add", "k", K.EXCLUSIVE), None, Clock(), Dice())
    assert int.from_bytes(id[8:14]) == Clock().now_ms()


def test_names_of_types() -> None:
    assert command_name(T.GET_LAZY_STATE_COMMAND) == "GetLazyState"
    assert command_name(T.START) == "Start"
    assert command_name(0x0FFF) == "0x0fff"
