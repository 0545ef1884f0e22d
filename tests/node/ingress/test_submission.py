"""From request to command: what is forwarded, kept and derived; and the order of the checks."""

from dataclasses import dataclass, field, replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.node.ingress.services import DEPLOYMENT, make_registry

from perdure.core.entropy import SystemEntropy
from perdure.core.errors import BadRequest, MethodNotAllowed, NotFound, PerdureError
from perdure.core.ids import partition_key_of
from perdure.engine.commands import Invoke
from perdure.engine.journal import idempotent_invocation_id, workflow_invocation_id
from perdure.node.http.ports import Headers
from perdure.node.ingress.paths import Call
from perdure.node.ingress.submission import is_visible, make_invoke
from perdure.node.registry.effective import Catalogue, Defaults, Route
from perdure.node.registry.model import Registry
from perdure.proto import service_pb2 as pb
from perdure.storage.tables.invocations import HandlerKind, Source, SourceKind, Target

NOW_MS = 1_700_000_000_123
DAY_MS = 86_400_000
REGISTRY = make_registry("http://127.0.0.1:9/")
CATALOGUE = Catalogue(REGISTRY, Defaults())


class StoppedClock:
    """Always now."""

    def now_ms(self) -> int:
        return NOW_MS

    def monotonic(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Sent:
    """A request as a client sends it."""

    method: str = "POST"
    target: str = "/Greeter/greet"
    headers: Headers = field(default_factory=lambda: [(b"content-type", b"application/json")])
    body: bytes = b'"Ada"'

    def with_headers(self, *headers: tuple[bytes, bytes]) -> "Sent":
        return replace(self, headers=[*self.headers, *headers])


GREET = Call("Greeter", "greet", None, False)
ADD = Call("Counter", "add", "k", False)
RUN = Call("Flow", "run", "w", False)
STATUS = Call("Flow", "status", "w", False)


def invoke(call: Call, sent: Sent) -> Invoke:
    return make_invoke(call, route(call), sent, StoppedClock(), SystemEntropy())


def route(call: Call) -> Route | None:
    return CATALOGUE.latest(call.service, call.handler)


def forwarded(command: Invoke) -> list[tuple[str, str]]:
    message = pb.InputCommandMessage.FromString(command.input)
    return [(header.key, header.value) for header in message.headers]


def test_plain_call() -> None:
    command = invoke(GREET, Sent())
    assert command.target == Target("Greeter", "greet", None, HandlerKind.SERVICE)
    assert command.source == Source(SourceKind.INGRESS)
    assert command.sink is None
    assert command.execute_at_ms == 0
    assert command.idempotency_key is None
    assert (command.completion_retention_ms, command.journal_retention_ms) == (DAY_MS, DAY_MS)
    message = pb.InputCommandMessage.FromString(command.input)
    assert message.value.content == b'"Ada"'
    assert invoke(GREET, Sent()).id != command.id


def test_empty_body_is_a_value() -> None:
    command = invoke(Call("Greeter", "silent", None, False), Sent(headers=[], body=b""))
    assert pb.InputCommandMessage.FromString(command.input).HasField("value")


def test_headers_are_forwarded_in_order() -> None:
    sent = Sent(target="//Greeter/greet/?a=b%20c").with_headers(
        (b"host", b"h"),
        (b"x-b", b"1"),
        (b"connection", b"close"),
        (b"x-a", b"2\tand 3"),
        (b"idempotency-key", b"k"),
        (b"x-b", b"again"),
        (b"idempotency-expires", b"never"),
        (b"authorization", b"Bearer t"),
        (b"content-length", b"5"),
    )
    assert forwarded(invoke(GREET, sent)) == [
        ("x-restate-ingress-path", "/Greeter/greet?a=b%20c"),
        ("content-type", "application/json"),
        ("x-b", "1"),
        ("x-a", "2\tand 3"),
        ("authorization", "Bearer t"),
        ("content-length", "5"),
    ]


@pytest.mark.parametrize(
    ("call", "key"), [(GREET, None), (ADD, "k"), (STATUS, "w"), (replace(ADD, key=""), "")]
)
@pytest.mark.parametrize("idempotency_key", ["k1", "", "with blanks"])
def test_idempotency_key_names_the_invocation(
    call: Call, key: str | None, idempotency_key: str
) -> None:
    command = invoke(call, Sent().with_headers((b"idempotency-key", idempotency_key.encode())))
    wanted = idempotent_invocation_id(call.service, key, call.handler, idempotency_key)
    assert command.id == wanted
    assert command.idempotency_key == idempotency_key


def test_workflow_key_names_the_run() -> None:
    assert invoke(RUN, Sent()).id == workflow_invocation_id("Flow", "w")
    assert invoke(STATUS, Sent()).id != workflow_invocation_id("Flow", "w")
    same_key = partition_key_of(invoke(STATUS, Sent()).id)
    assert same_key == partition_key_of(invoke(RUN, Sent()).id)


def test_delay_sets_the_time() -> None:
    send = replace(GREET, is_send=True)
    at = invoke(send, Sent(target="/Greeter/greet/send?Delay=1+sec&delay=2s")).execute_at_ms
    assert at == NOW_MS + 1_000
    assert invoke(send, Sent(target="/Greeter/greet/send?delay=0s")).execute_at_ms == NOW_MS
    assert invoke(send, Sent(target="/Greeter/greet/send?x=1")).execute_at_ms == 0


def test_retention_comes_from_the_route() -> None:
    kept = invoke(Call("Greeter", "kept", None, False), Sent())
    assert (kept.completion_retention_ms, kept.journal_retention_ms) == (60_000, 60_000)
    sent = Sent().with_headers((b"idempotency-key", b"k"))
    kept = invoke(Call("Greeter", "kept", None, False), sent)
    assert (kept.completion_retention_ms, kept.journal_retention_ms) == (90_000, 60_000)


BAD = Sent(
    method="PUT",
    target="/x?delay=foo&limit-key=a/b/c",
    headers=[(b"idempotency-key", b"\xff"), (b"content-type", b"text/plain")],
)


def test_checks_have_an_order() -> None:
    """Each step repairs what the last refusal named; the next one in order comes up."""
    sent, call = BAD, Call("Flow", "nothing", "w", False, "bad scope")

    def refusal() -> PerdureError:
        with pytest.raises(PerdureError) as caught:
            invoke(call, sent)
        return caught.value

    assert "no handler" in refusal().message and isinstance(refusal(), NotFound)
    call = replace(call, handler="hidden")
    assert "private" in refusal().message
    call = replace(call, handler="run")
    assert "idempotency-key" in refusal().message
    call = replace(call, handler="status")
    assert "bad scope" in refusal().message
    call = replace(call, scope="good")
    assert "not available" in refusal().message
    call = replace(call, scope=None)
    assert isinstance(refusal(), MethodNotAllowed)
    sent = replace(sent, method="GET")
    assert "application/json" in refusal().message
    sent = replace(sent, headers=[(b"content-type", b"application/json"), sent.headers[0]])
    assert "delay 'foo'" in refusal().message
    sent = replace(sent, target="/x?delay=1s&limit-key=a/b/c")
    assert "limit key 'a/b/c'" in refusal().message
    sent = replace(sent, target="/x?delay=1s&LIMIT-KEY=a/b")
    assert "needs a scope" in refusal().message
    sent = replace(sent, target="/x?delay=1s&limit-key=")
    assert "'idempotency-key'" in refusal().message
    sent = replace(sent, headers=[sent.headers[0], (b"idempotency-key", b"k")])
    assert "a call waits" in refusal().message
    sent = replace(sent, target="/x")
    assert invoke(call, sent).idempotency_key == "k"


def test_limit_key_header_beats_the_query() -> None:
    sent = Sent(target="/Greeter/greet?limit-key=a").with_headers((b"x-restate-limit-key", b""))
    assert invoke(GREET, sent).idempotency_key is None
    with pytest.raises(BadRequest):
        invoke(GREET, Sent(target="/Greeter/greet?limit-key=a"))


def test_protocol_of_the_past_is_refused() -> None:
    deployment = msgspec.structs.replace(
        REGISTRY.deployments[DEPLOYMENT], protocol_version_min=1, protocol_version_max=4
    )
    old = Catalogue(Registry({DEPLOYMENT: deployment}, REGISTRY.latest), Defaults())
    with pytest.raises(BadRequest, match="no longer supported"):
        make_invoke(GREET, old.latest("Greeter", "greet"), Sent(), StoppedClock(), SystemEntropy())


@given(st.binary(max_size=20))
def test_visible_ascii(value: bytes) -> None:
    text = value.decode("latin-1")
    assert is_visible(text) == all(byte == 9 or 32 <= byte < 127 for byte in value)
