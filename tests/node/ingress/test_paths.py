"""Which request a path is: the table of routes, and what is refused."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import BadRequest, NotFound, PerdureError
from perdure.core.ids import format_awakeable_id, format_invocation_id, make_invocation_id
from perdure.engine.journal import idempotent_invocation_id, workflow_invocation_id
from perdure.node.ingress.paths import (
    Call,
    CompleteAwakeable,
    Fetch,
    FetchByBody,
    Health,
    Request,
    Verb,
    decode_segment,
    normalize,
    parse_path,
)
from perdure.node.registry.model import ServiceType

TYPES = {
    "Greeter": ServiceType.SERVICE,
    "Counter": ServiceType.VIRTUAL_OBJECT,
    "Flow": ServiceType.WORKFLOW,
}
ID = make_invocation_id(7, 9)
ID_TEXT = format_invocation_id(ID)
AWAKEABLE = format_awakeable_id(ID, 17)


def parse(target: str) -> Request:
    return parse_path(target, TYPES.get)


CALLS = [
    ("/Greeter/greet", Call("Greeter", "greet", None, False)),
    ("/Greeter/greet/", Call("Greeter", "greet", None, False)),
    ("/Greeter/greet///", Call("Greeter", "greet", None, False)),
    ("//Greeter/greet", Call("Greeter", "greet", None, False)),
    ("http://host:8080/Greeter/greet?x=1", Call("Greeter", "greet", None, False)),
    ("/Greeter/greet?delay=1s/2/3/4/5/6/7", Call("Greeter", "greet", None, False)),
    ("/Greeter/greet/send", Call("Greeter", "greet", None, True)),
    ("/Greeter/gre%65t", Call("Greeter", "gre%65t", None, False)),
    ("/Counter/k/add", Call("Counter", "add", "k", False)),
    ("/Counter/k/add/send?delay=1s", Call("Counter", "add", "k", True)),
    ("/Counter/k/send", Call("Counter", "send", "k", False)),
    ("/Counter/k/send/send", Call("Counter", "send", "k", True)),
    ("/Counter//add", Call("Counter", "add", "", False)),
    ("/Counter/a%2Fb/add", Call("Counter", "add", "a/b", False)),
    ("/Counter/a+b%20c/add", Call("Counter", "add", "a+b c", False)),
    ("/Counter/a%zz/add", Call("Counter", "add", "a%zz", False)),
    ("/Counter/%E2%82%AC/add", Call("Counter", "add", "€", False)),
    ("/Counter/\u00e2\u0082\u00ac/add", Call("Counter", "add", "€", False)),
    ("/Flow/w1/run", Call("Flow", "run", "w1", False)),
    ("/Flow/w1/run/send", Call("Flow", "run", "w1", True)),
    ("/restate/call/Greeter/greet", Call("Greeter", "greet", None, False)),
    ("/restate/send/Greeter/greet/", Call("Greeter", "greet", None, True)),
    ("/restate/call/Counter/a%2Fb/add", Call("Counter", "add", "a/b", False)),
    ("/restate/send/Counter//add", Call("Counter", "add", "", True)),
    ("/restate/scope/s%31/call/Greeter/greet", Call("Greeter", "greet", None, False, "s1")),
    ("/restate/scope/s1/send/Counter/k/add", Call("Counter", "add", "k", True, "s1")),
]


@pytest.mark.parametrize(("target", "expected"), CALLS)
def test_calls(target: str, expected: Call) -> None:
    assert parse(target) == expected


GREETER = idempotent_invocation_id("Greeter", None, "greet", "k1")
COUNTER = idempotent_invocation_id("Counter", "a/b", "add", "k%31")
WORKFLOW = workflow_invocation_id("Flow", "w 1")

OTHERS = [
    (f"/restate/invocation/{ID_TEXT}/attach", Fetch(ID, Verb.ATTACH)),
    (f"/restate/invocation/{ID_TEXT}/output", Fetch(ID, Verb.OUTPUT)),
    ("/restate/invocation/Greeter/greet/k1/attach", Fetch(GREETER, Verb.ATTACH)),
    ("/restate/invocation/Counter/a%2Fb/add/k%31/output", Fetch(COUNTER, Verb.OUTPUT)),
    ("/restate/workflow/Flow/w%201/attach", Fetch(WORKFLOW, Verb.ATTACH)),
    ("/restate/workflow/Flow//output", Fetch(workflow_invocation_id("Flow", ""), Verb.OUTPUT)),
    (f"/restate/attach/{ID_TEXT}", Fetch(ID, Verb.ATTACH)),
    (f"/restate/output/{ID_TEXT}", Fetch(ID, Verb.OUTPUT)),
    ("/restate/attach", FetchByBody(Verb.ATTACH)),
    ("/restate/output/", FetchByBody(Verb.OUTPUT)),
    ("/restate/lookup", FetchByBody(Verb.LOOKUP)),
    (f"/restate/awakeables/{AWAKEABLE}/resolve", CompleteAwakeable((ID, 17), True)),
    (f"/restate/a/{AWAKEABLE}/reject", CompleteAwakeable((ID, 17), False)),
    (f"/restate/a/{AWAKEABLE.replace('sign', 'prom')}/reject", CompleteAwakeable(None, False)),
    ("/restate/health", Health()),
    ("/restate/health/x", Health()),
]


@pytest.mark.parametrize(("target", "expected"), OTHERS)
def test_reserved_routes(target: str, expected: Request) -> None:
    assert parse(target) == expected


REFUSED: list[tuple[str, type[PerdureError]]] = [
    ("/", BadRequest),
    ("", BadRequest),
    ("*", BadRequest),
    ("/Greeter", BadRequest),
    ("/Greeter/", BadRequest),
    ("/openapi", BadRequest),
    ("/restate", BadRequest),
    ("/a/b/c/d/e/f/g/h", BadRequest),
    ("/openapi/x", NotFound),
    ("/restate/foo", NotFound),
    ("/Nobody/greet", NotFound),
    ("/Nobody/a/b/c/d/e", NotFound),
    ("/gr%65eter/greet", NotFound),
    ("/Greeter/greet/foo", BadRequest),
    ("/Greeter/greet/send/extra", BadRequest),
    ("/Counter/add", BadRequest),
    ("/Counter/k/add/foo", BadRequest),
    ("/Counter/%ff%fe/add", BadRequest),
    ("/Counter/\u00ff/add", BadRequest),
    ("/restate/call/Greeter/greet/send", BadRequest),
    ("/restate/call/Greeter", BadRequest),
    ("/restate/call/Nobody/greet", NotFound),
    ("/restate/send", BadRequest),
    ("/restate/scope/s", BadRequest),
    ("/restate/scope/s/attach/Greeter/greet", BadRequest),
    ("/restate/invocation", BadRequest),
    (f"/restate/invocation/{ID_TEXT}", BadRequest),
    (f"/restate/invocation/{ID_TEXT}/cancel", NotFound),
    ("/restate/invocation/inv_1short/attach", BadRequest),
    ("/restate/invocation/sign_1abc/attach", BadRequest),
    ("/restate/invocation/nonsense/attach", BadRequest),
    ("/restate/invocation/Nobody/greet/k1/attach", NotFound),
    ("/restate/invocation/Greeter/greet/attach", BadRequest),
    ("/restate/invocation/Greeter/k/greet/k1/attach", BadRequest),
    ("/restate/invocation/Greeter/greet/k1/cancel", NotFound),
    ("/restate/workflow/Flow/attach", BadRequest),
    ("/restate/workflow/Flow/w1/cancel", NotFound),
    ("/restate/workflow/Flow/%ff/attach", BadRequest),
    (f"/restate/attach/{ID_TEXT}/x", BadRequest),
    ("/restate/output/inv_1", BadRequest),
    (f"/restate/lookup/{ID_TEXT}", BadRequest),
    (f"/restate/awakeables/{AWAKEABLE}", BadRequest),
    (f"/restate/awakeables/{AWAKEABLE}/peek", NotFound),
    (f"/restate/awakeables/{AWAKEABLE}/resolve/x", BadRequest),
    ("/restate/awakeables/sign_1nonsense/resolve", BadRequest),
    (f"/restate/awakeables/{ID_TEXT}/resolve", BadRequest),
    (f"/restate/awakeables/{format_awakeable_id(ID, 1)}/resolve", BadRequest),
]


@pytest.mark.parametrize(("target", "kind"), REFUSED)
def test_refusals(target: str, kind: type[PerdureError]) -> None:
    with pytest.raises(kind) as caught:
        parse(target)
    assert type(caught.value) is kind
    assert caught.value.message


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a/b", "/a/b"),
        ("//a//b//", "/a//b"),
        ("/a/b/?c=/d/", "/a/b?c=/d/"),
        ("/a/b?", "/a/b?"),
        ("http://host:1/a/b?c", "/a/b?c"),
        ("http://host", "/"),
        ("*", "/*"),
        ("", "/"),
    ],
)
def test_normal_form(target: str, expected: str) -> None:
    assert normalize(target) == expected


@given(st.text(max_size=20))
def test_quoted_keys_come_back(key: str) -> None:
    quoted = quote(key, safe="")
    request = parse(f"/Counter/{quoted}/add")
    assert request == Call("Counter", "add", key, False)
    assert decode_segment(quoted) == key


@given(st.text(alphabet=st.characters(max_codepoint=0xFF), max_size=60))
def test_any_target_is_parsed_or_refused(target: str) -> None:
    for prefix in ("", "/", "/restate/", "/Counter/", "/Greeter/", "/restate/invocation/"):
        try:
            parse(prefix + target)
        except (BadRequest, NotFound) as refusal:
            assert refusal.message
