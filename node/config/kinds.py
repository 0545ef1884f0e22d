"""Kinds of settings: how a value is written, parsed, bounded and shown. Pure.

A kind reads what a source holds (a TOML value, or text from a variable or flag) and raises
``ValueError`` with what is allowed; who knows the key and the source makes an error of it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar, cast

from perdure.node.config import durations, values
from perdure.node.config.values import Address

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

_UNBOUNDED_MS = durations.DURATION_MS_MAX

Json = str | int | float | bool | None | dict[str, str]


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How values of one kind are written. ``syntax`` completes "expected …".

    ``range``: the bounds in words, where ``syntax`` doesn't state them.
    """

    name: str
    syntax: str
    parse: Callable[[object], T]
    show: Callable[[T], str]
    json: Callable[[T], Json]
    range: str = ""


def duration(lower_ms: int = 0, upper_ms: int = _UNBOUNDED_MS) -> Kind[int]:
    """Milliseconds, within bounds."""

    def parse(raw: object) -> int:
        return _within(
            durations.parse_duration(_text(raw)), lower_ms, upper_ms, durations.format_duration
        )

    show = durations.format_duration
    bounds = _range(lower_ms or None, upper_ms if upper_ms < _UNBOUNDED_MS else None, show)
    return Kind("duration", durations.SYNTAX, parse, show, _itself, bounds)


def size(lower: int, upper: int) -> Kind[int]:
    """Bytes, within bounds."""

    def parse(raw: object) -> int:
        read = raw if _is_integer(raw) else values.parse_size(_text(raw))
        assert isinstance(read, int)
        return _within(read, lower, upper, values.format_size)

    show = values.format_size
    return Kind("size", values.SIZE_SYNTAX, parse, show, _itself, _range(lower, upper, show))


def count(lower: int, upper: int) -> Kind[int]:
    """A whole number within bounds."""
    syntax = f"a whole number from {lower} to {upper}"

    def parse(raw: object) -> int:
        if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,19}", raw.strip(), re.ASCII):
            raw = int(raw)
        if not isinstance(raw, int) or isinstance(raw, bool) or not lower <= raw <= upper:
            raise ValueError(f"expected {syntax}")
        return raw

    return Kind("count", syntax, parse, str, _itself)


def factor(lower: float, upper: float) -> Kind[float]:
    """A number within bounds."""
    syntax = f"a number from {lower:g} to {upper:g}"

    def parse(raw: object) -> float:
        if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", raw.strip()):
            raw = float(raw)
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not lower <= raw <= upper:
            raise ValueError(f"expected {syntax}")
        return float(raw)

    return Kind("factor", syntax, parse, str, _itself)


def choice(options: type[E]) -> Kind[E]:
    """One of an enum's values, in any case."""
    words = {str(option.value).lower(): option for option in options}
    syntax = f"one of {', '.join(words)}"

    def parse(raw: object) -> E:
        option = words.get(_text(raw).strip().lower())
        if option is None:
            raise ValueError(f"expected {syntax}")
        return option

    def show(option: E) -> str:
        return str(option.value).lower()

    return Kind("choice", syntax, parse, show, show)


def optional(kind: Kind[T], word: str) -> Kind[T | None]:
    """Another kind, or a word that stands for None."""
    syntax = f"{kind.syntax}; or {word!r}"

    def parse(raw: object) -> T | None:
        if isinstance(raw, str) and raw.strip().lower() == word:
            return None
        try:
            return kind.parse(raw)
        except ValueError as error:
            raise ValueError(f"{error}; or {word!r}") from None

    return Kind(
        kind.name,
        syntax,
        parse,
        lambda value: word if value is None else kind.show(value),
        lambda value: None if value is None else kind.json(value),
        kind.range,
    )


def _boolean(raw: object) -> bool:
    words = {"true": True, "false": False}
    value = words.get(raw.strip().lower()) if isinstance(raw, str) else raw
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _name(raw: object) -> str:
    text = _text(raw)
    if not _NAME.fullmatch(text):
        raise ValueError(f"expected {_NAME_SYNTAX}")
    return text


def _line(raw: object) -> str:
    text = _text(raw)
    if not _LINE.fullmatch(text):
        raise ValueError(f"expected {_TEXT_SYNTAX}")
    return text


def _path(raw: object) -> Path:
    text = _text(raw)
    if not text.strip() or "\0" in text:
        raise ValueError("expected a path")
    return Path(text).expanduser()


def _headers(raw: object) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for name, value in _pairs(raw, _HEADERS_SYNTAX):
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no header name: expected {_HEADERS_SYNTAX}")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"the value of {name!r} is no header value: expected text")
        found[name.lower()] = value
    return tuple(found.items())


def _members(raw: object) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for name, value in _pairs(raw if raw != "none" else "", _MEMBERS_SYNTAX):
        address = values.parse_address(_text(value))
        if address.port == 0 or address.reachable_host != address.host:
            raise ValueError(f"{value} is nowhere to connect to: expected {_MEMBERS_SYNTAX}")
        found[_name(name)] = str(address)
    if len(found) % 2 == 0 and found:
        raise ValueError(
            f"{len(found)} members are as good as {len(found) - 1}: list an odd number"
        )
    return tuple(found.items())


def _endpoints(raw: object) -> tuple[str, ...]:
    parts = raw.split(",") if isinstance(raw, str) and raw != "none" else raw
    if parts == "none":
        return ()
    if not isinstance(parts, list):
        raise ValueError(f"expected {_ENDPOINTS_SYNTAX}")
    found: list[str] = []
    for part in cast(list[object], parts):
        text = _text(part).strip()
        if not text:
            continue
        address = values.parse_address(text)
        if address.port == 0 or address.reachable_host != address.host:
            raise ValueError(f"{text} is nowhere to connect to: expected {_ENDPOINTS_SYNTAX}")
        found.append(str(address))
    return tuple(found)


def _pairs(raw: object, syntax: str) -> list[tuple[object, object]]:
    if isinstance(raw, dict):
        return list(cast(dict[object, object], raw).items())
    if not isinstance(raw, str):
        raise ValueError(f"expected {syntax}")
    pairs: list[tuple[object, object]] = []
    for part in filter(None, (part.strip() for part in raw.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"expected {syntax}")
        pairs.append((name.strip(), value.strip()))
    return pairs


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_NAME_SYNTAX = "1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit"
_LINE = re.compile(r"[!-~](?:[ -~]{0,1222}[!-~])?", re.ASCII)
_TEXT_SYNTAX = "a line of printable ASCII text"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,255}", re.ASCII)
_HEADER_VALUE = re.compile(r"(?:[!-~](?:[ -~\t]*[!-~])?)?", re.ASCII)
_MEMBERS_SYNTAX = "a table of node names and addresses; as a variable, 'name=host:port, …'"
_ENDPOINTS_SYNTAX = "a list of addresses; as a variable, 'host:port, host:port'"
_HEADERS_SYNTAX = "a table of names and texts; as a variable, 'name=value, name=value'"


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError("expected text in quotes")
    return raw


def _is_integer(raw: object) -> bool:
    return isinstance(raw, int) and not isinstance(raw, bool)


def _within(value: int, lower: int, upper: int, show: Callable[[int], str]) -> int:
    if not lower <= value <= upper:
        raise ValueError(f"expected {show(lower)} to {show(upper)}")
    return value


def _range(lower: int | None, upper: int | None, show: Callable[[int], str]) -> str:
    parts = [f"from {show(lower)}"] if lower is not None else []
    if upper is not None:
        parts.append(f"to {show(upper)}")
    return " ".join(parts)


def _itself(value: T) -> T:
    return value


def _show_boolean(value: bool) -> str:
    return "true" if value else "false"


def _show_headers(pairs: tuple[tuple[str, str], ...]) -> str:
    # Values may be credentials, and what is shown gets pasted into bug reports.
    return ", ".join(f"{name}=***" for name, _ in pairs) or "none"


def _show_members(pairs: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{name}={address}" for name, address in pairs) or "none"


def _show_endpoints(endpoints: tuple[str, ...]) -> str:
    return ", ".join(endpoints) or "none"


def _table(pairs: tuple[tuple[str, str], ...]) -> Json:
    return dict(pairs)


def _mask_headers(pairs: tuple[tuple[str, str], ...]) -> Json:
    return {name: "***" for name, _ in pairs}


BOOLEAN: Kind[bool] = Kind("boolean", "true or false", _boolean, _show_boolean, _itself)
NAME: Kind[str] = Kind("name", _NAME_SYNTAX, _name, str, _itself)
TEXT: Kind[str] = Kind("text", _TEXT_SYNTAX, _line, str, _itself)
PATH: Kind[Path] = Kind("path", "a path", _path, str, str)
ADDRESS: Kind[Address] = Kind(
    "address", values.ADDRESS_SYNTAX, lambda raw: values.parse_address(_text(raw)), str, str
)
HOST: Kind[str] = Kind(
    "host",
    "a host or an IP address; '*' for every interface",
    lambda raw: values.parse_host(_text(raw)),
    lambda host: host or "*",
    lambda host: host or "*",
)
URL: Kind[str] = Kind(
    "URL", values.URL_SYNTAX, lambda raw: values.parse_url(_text(raw)), str, _itself
)
DESTINATION: Kind[str] = Kind(
    "destination",
    values.DESTINATION_SYNTAX,
    lambda raw: values.parse_destination(_text(raw)),
    str,
    _itself,
)
HEADERS: Kind[tuple[tuple[str, str], ...]] = Kind(
    "headers", _HEADERS_SYNTAX, _headers, _show_headers, _mask_headers
)
MEMBERS: Kind[tuple[tuple[str, str], ...]] = Kind(
    "members", _MEMBERS_SYNTAX, _members, _show_members, _table
)
ENDPOINTS: Kind[tuple[str, ...]] = Kind(
    "addresses", _ENDPOINTS_SYNTAX, _endpoints, _show_endpoints, _show_endpoints
)
