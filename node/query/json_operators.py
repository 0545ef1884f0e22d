"""``->``, ``->>`` and ``?`` on JSON texts, which the query engine can't do by itself. Pure.

Operators are rewritten to function calls before the statement is parsed: token by token, from left
to right, so that chains nest. What stands to the left of an operator is a column, a literal, a
call, or something in parentheses; to the right a text or a number, in parentheses if it is more.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import msgspec

FUNCTIONS = {"->": "json_get", "->>": "json_as_text", "?": "json_contains"}

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<dollar>(?P<tag>\$\w*\$).*?(?:(?P=tag)|\Z))
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<word>[^\W\d]\w*)
    | (?P<operator>->>|->|\?|::)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_INDEX_DIGITS_MAX = 9
_OPENING, _CLOSING = "([", ")]"


class _Token(NamedTuple):
    kind: str
    text: str


def rewrite(statement: str) -> str:
    """The statement with operators on JSON as calls; others are returned as they are."""
    if "->" not in statement and "?" not in statement:
        return statement
    tokens = [
        _Token(match.lastgroup or "other", match.group()) for match in _TOKEN.finditer(statement)
    ]
    tokens = [_Token("dollar", t.text) if t.kind == "tag" else t for t in tokens]
    position = 0
    while position < len(tokens):
        if tokens[position].text in FUNCTIONS and tokens[position].kind == "operator":
            left = _left_operand(tokens, position)
            right = _right_operand(tokens, position)
            if left < position < right - 1 or left < position == right - 1:
                call = [
                    _Token("word", FUNCTIONS[tokens[position].text]),
                    _Token("other", "("),
                    *tokens[left:position],
                    _Token("other", ","),
                    *tokens[position + 1 : right],
                    _Token("other", ")"),
                ]
                tokens[left:right] = call
                position = left + len(call)
                continue
        position += 1
    return "".join(token.text for token in tokens)


def get(text: str | None, key: str | None) -> str | None:
    """A member or element as JSON text; None when there is none."""
    found = _find(text, key)
    return None if found is _NOTHING else msgspec.json.encode(found).decode()


def as_text(text: str | None, key: str | None) -> str | None:
    """A member or element as plain text; None when there is none or it is null."""
    found = _find(text, key)
    if found is _NOTHING or found is None:
        return None
    return found if isinstance(found, str) else msgspec.json.encode(found).decode()


def contains(text: str | None, key: str | None) -> bool | None:
    """Whether there is such a member or element."""
    return None if text is None else _find(text, key) is not _NOTHING


_NOTHING = object()


def _find(text: str | None, key: str | None) -> Any:
    if text is None or key is None:
        return _NOTHING
    try:
        document: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return _NOTHING
    if isinstance(document, dict):
        return cast(dict[str, Any], document).get(key, _NOTHING)
    is_index = key.isascii() and key.isdigit() and len(key) <= _INDEX_DIGITS_MAX
    if not is_index or not isinstance(document, list):
        return _NOTHING
    elements = cast(Sequence[Any], document)
    return elements[int(key)] if int(key) < len(elements) else _NOTHING


def _left_operand(tokens: list[_Token], position: int) -> int:
    """Where the operand that ends before ``position`` begins."""
    end = _skip_spaces(tokens, position - 1, -1)
    if end < 0:
        return position
    while True:
        if tokens[end].text in _CLOSING and tokens[end].kind == "other":
            end = _matching(tokens, end)
            if end < 0:
                return position
            before = end - 1
            if before >= 0 and tokens[before].kind == "word":
                end = before  # a call
            elif tokens[end].text == "[" and before >= 0:
                end = before  # an element of what stands before
                continue
        elif tokens[end].kind not in ("word", "quoted", "dollar", "number"):
            return position
        if end >= 2 and tokens[end - 1].text in (".", "::"):
            end -= 2
            continue
        return end


def _right_operand(tokens: list[_Token], position: int) -> int:
    """Where the operand that begins behind ``position`` ends."""
    start = _skip_spaces(tokens, position + 1, 1)
    if start >= len(tokens):
        return position
    if tokens[start].text == "(":
        depth = 0
        for index in range(start, len(tokens)):
            if tokens[index].kind == "other":
                depth += (tokens[index].text in _OPENING) - (tokens[index].text in _CLOSING)
            if depth == 0:
                return index + 1
        return position
    if tokens[start].kind not in ("word", "quoted", "dollar", "number"):
        return position
    end = start + 1
    while end + 1 < len(tokens) and tokens[end].text == ".":
        end += 2
    return end


def _matching(tokens: list[_Token], end: int) -> int:
    depth = 0
    for index in range(end, -1, -1):
        if tokens[index].kind == "other":
            depth += (tokens[index].text in _CLOSING) - (tokens[index].text in _OPENING)
        if depth == 0:
            return index
    return -1


def _skip_spaces(tokens: list[_Token], position: int, step: int) -> int:
    while 0 <= position < len(tokens) and tokens[position].kind == "space":
        position += step
    return position
