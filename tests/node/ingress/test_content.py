"""Input rules and output types, as manifests declare them."""

import pytest

from perdure.core.errors import BadRequest
from perdure.node.ingress.content import check_input, matches, output_content_type
from perdure.node.registry.model import Handler, InputRules, OutputRules
from perdure.storage.tables.invocations import HandlerKind

JSON = "application/json"
OPEN = InputRules(is_open=True)
NONE = InputRules()
OPTIONAL_JSON = InputRules(content_type=JSON, json_schema=b"{}")
REQUIRED_JSON = InputRules(required=True, content_type=JSON, json_schema=b"{}")
REQUIRED_TEXT = InputRules(required=True, content_type="text/*")
REQUIRED_ANY = InputRules(required=True)


@pytest.mark.parametrize(
    ("rules", "content_type", "body"),
    [
        (OPEN, None, b""),
        (OPEN, "x/y", b"1"),
        (OPEN, "x/y", b""),
        (NONE, None, b""),
        (OPTIONAL_JSON, None, b""),
        (OPTIONAL_JSON, JSON, b"1"),
        (REQUIRED_JSON, JSON, b"no JSON at all"),
        (REQUIRED_JSON, "application/json; charset=utf-8", b"1"),
        (REQUIRED_JSON, " application/json ;charset=x", b"1"),
        (REQUIRED_TEXT, "text/plain", b""),
        (REQUIRED_TEXT, "text/plain", b"1"),
        (REQUIRED_ANY, None, b"1"),
        (REQUIRED_ANY, "x/y", b"1"),
    ],
)
def test_accepted(rules: InputRules, content_type: str | None, body: bytes) -> None:
    check_input(_handler(rules), content_type, body)


@pytest.mark.parametrize(
    ("rules", "content_type", "body"),
    [
        (OPEN, None, b"1"),
        (NONE, None, b"1"),
        (NONE, JSON, b""),
        (NONE, JSON, b"1"),
        (OPTIONAL_JSON, JSON, b""),
        (OPTIONAL_JSON, None, b"1"),
        (REQUIRED_JSON, None, b""),
        (REQUIRED_JSON, None, b"1"),
        (REQUIRED_JSON, JSON, b""),
        (REQUIRED_JSON, "", b"1"),
        (REQUIRED_JSON, "text/plain", b"1"),
        (REQUIRED_JSON, "Application/JSON", b"1"),
        (REQUIRED_TEXT, None, b""),
        (REQUIRED_TEXT, JSON, b"1"),
        (REQUIRED_ANY, None, b""),
    ],
)
def test_refused(rules: InputRules, content_type: str | None, body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        check_input(_handler(rules), content_type, body)
    assert "'greet'" in caught.value.message


@pytest.mark.parametrize(
    ("actual", "pattern", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "*/*", True),
        ("a/b", "a/*", True),
        ("a/b", "*/b", False),
        ("a/b", "a/c", False),
        ("ab/c", "a/*", False),
        ("a/b;q=1", "a/b;charset=utf-8", True),
        ("a/*", "a/b", False),
        ("*/*", "a/b", False),
        ("a", "a", True),
        ("a", "a/*", True),
    ],
)
def test_matches(actual: str, pattern: str, expected: bool) -> None:
    assert matches(actual, pattern) is expected


def test_output_type() -> None:
    assert output_content_type(OutputRules(JSON), b"1") == JSON
    assert output_content_type(OutputRules(JSON), b"") is None
    assert output_content_type(OutputRules(JSON, True), b"") == JSON
    assert output_content_type(OutputRules(), b"1") is None


def _handler(rules: InputRules) -> Handler:
    return Handler("greet", HandlerKind.SERVICE, rules, OutputRules())
