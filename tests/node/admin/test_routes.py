"""Paths to endpoints, and what requests say, without a server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import BadRequest, NotFound, PerdureError
from perdure.node.admin.admin import ROUTES
from perdure.node.admin.requests import Request, error_reply, moment
from perdure.node.admin.routes import Match, Route, Router, WrongMethod

ROUTER = Router(
    [
        Route("GET", "/things", "list"),
        Route("GET", "/things/{name}", "get"),
        Route("PATCH", "/things/{name}", "patch"),
        Route("GET", "/things/{name}/parts/{key}", "part"),
    ]
)


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/things", Match("list", 0, {}, {})),
        ("HEAD", "/v3/things", Match("list", 3, {}, {})),
        (
            "PATCH",
            "/v2/things/a%2Fb?x=1&y=&x=2",
            Match("patch", 2, {"name": "a/b"}, {"x": "1", "y": ""}),
        ),
        ("GET", "/things/a+b", Match("get", 0, {"name": "a+b"}, {})),
        ("GET", "/things/a/parts/", Match("part", 0, {"name": "a", "key": ""}, {})),
        ("GET", "/things?q=a+b%20c", Match("list", 0, {}, {"q": "a b c"})),
    ],
)
def test_match(method: str, target: str, expected: Match[str]) -> None:
    assert ROUTER.match(method, target) == expected


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/", NotFound),
        ("/things/", NotFound),
        ("/things//parts/x", NotFound),
        ("//things", NotFound),
        ("/v5/things", NotFound),
        ("/v4", NotFound),
        ("things", NotFound),
        ("/v1/things", BadRequest),
        ("/things/%ff", BadRequest),
        ("/things?a=%ff", BadRequest),
        ("/things?" + "&".join(["a=1"] * 101), BadRequest),
    ],
)
def test_no_match(target: str, error: type[PerdureError]) -> None:
    with pytest.raises(error):
        ROUTER.match("GET", target)


def test_wrong_method_names_the_right_ones() -> None:
    with pytest.raises(WrongMethod) as caught:
        ROUTER.match("DELETE", "/things/a")
    assert caught.value.allowed == "GET, HEAD, PATCH"
    assert caught.value.error.http_status == 405


@given(st.text(max_size=40))
def test_any_target_is_matched_or_refused(target: str) -> None:
    router = Router(ROUTES)
    try:
        match = router.match("GET", f"/{target}")
    except (NotFound, BadRequest, WrongMethod) as refused:
        assert str(refused)
    else:
        assert match.endpoint in [route.endpoint for route in ROUTES]


def test_no_two_routes_answer_the_same() -> None:
    shapes = [
        (route.method, tuple("*" if part[:1] == "{" else part for part in route.pattern.split("/")))
        for route in ROUTES
    ]
    assert len(shapes) == len(set(shapes))


def request(**query: str) -> Request:
    return Request(method="GET", version=0, parameters={}, query=query, content_type=None, body=b"")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("7", 7),
        ("10", 10),
        ("11", None),
        ("-1", None),
        ("x", None),
        ("", None),
        ("1" * 13, None),
        ("\u0663", None),
        (" 1", None),
    ],
)
def test_numbers(text: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(BadRequest):
            request(n=text).number("n", 5, 0, 10)
    else:
        assert request(n=text).number("n", 5, 0, 10) == expected
    assert request().number("n", 5, 0, 10) == 5


def test_flags() -> None:
    assert request(f="true").flag("f", False) is True
    assert request(f="false").flag("f", True) is False
    assert request().flag("f", True) is True
    for text in ("", "1", "True", "yes"):
        with pytest.raises(BadRequest):
            request(f=text).flag("f", False)


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_764_000_000_123, "2025-11-24T16:00:00.123Z"),
        (1 << 62, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_moments(time_ms: int, text: str) -> None:
    assert moment(time_ms) == text


def test_errors_have_one_format() -> None:
    reply = error_reply(NotFound("nothing here"))
    assert reply.status == 404
    assert reply.body == b'{"message":"[REQ0002] nothing here","restate_code":"REQ0002"}'
