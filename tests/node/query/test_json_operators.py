"""Operators on JSON: how they are rewritten, and what the functions find."""

import pytest

from perdure.node.query.json_operators import as_text, contains, get, rewrite


@pytest.mark.parametrize(
    ("statement", "rewritten"),
    [
        ("select a from b", "select a from b"),
        ("select a ->> 'x'", "select json_as_text(a , 'x')"),
        ("select a->'x'->>'y'", "select json_as_text(json_get(a,'x'),'y')"),
        ("select t.a -> 0 ->> 'y' as z", "select json_as_text(json_get(t.a , 0 ), 'y') as z"),
        ('select "t"."a"->>\'x\'', 'select json_as_text("t"."a",\'x\')'),
        ("select f(a, b)->>'x'", "select json_as_text(f(a, b),'x')"),
        ("select (a || b)->>('x' || c)", "select json_as_text((a || b),('x' || c))"),
        (
            "where a ->> 'x' = 'y' and b ? 'z'",
            "where json_as_text(a , 'x') = 'y' and json_contains(b , 'z')",
        ),
        ("select a::text ->> 'x'", "select json_as_text(a::text , 'x')"),
        ("select '->' , \"a->b\" -- ->", "select '->' , \"a->b\" -- ->"),
        ("select $$ a -> b $$ /* -> */", "select $$ a -> b $$ /* -> */"),
        ("->", "->"),
        ("select a ->", "select a ->"),
        ("select it''s -> 'x", "select it''s -> 'x"),
    ],
)
def test_rewrites_operators_and_nothing_else(statement: str, rewritten: str) -> None:
    assert "".join(rewrite(statement).split()) == "".join(rewritten.split())


DOCUMENT = '{"a": "text", "b": [1, {"c": null}], "d": {"e": true}, "0": "zero"}'


def test_finds_members_and_elements() -> None:
    assert get(DOCUMENT, "a") == '"text"'
    assert as_text(DOCUMENT, "a") == "text"
    assert get(DOCUMENT, "b") == '[1,{"c":null}]'
    assert get(get(DOCUMENT, "b"), "1") == '{"c":null}'
    assert get("[7]", "1") is None
    assert as_text(get(DOCUMENT, "d"), "e") == "true"
    assert as_text('{"c":null}', "c") is None
    assert get('{"c":null}', "c") == "null"
    assert as_text(DOCUMENT, "0") == "zero"
    assert contains(DOCUMENT, "d") is True
    assert contains('{"c":null}', "c") is True


@pytest.mark.parametrize("text", [None, "", "no json", "3", "[" * 100_000])
def test_there_is_nothing_in_what_is_no_document(text: str | None) -> None:
    assert get(text, "a") is None
    assert as_text(text, "a") is None
    assert contains(text, "a") is (None if text is None else False)
