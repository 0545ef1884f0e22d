"""Paths of the admin API: which endpoint answers what. Pure.

The whole API is mounted without a prefix and under ``/v2`` to ``/v4``; differences between versions
are the endpoints' business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import parse_qsl, unquote

from perdure.core.errors import BadRequest, MethodNotAllowed, NotFound

E = TypeVar("E")

VERSION_MIN = 2
VERSION_MAX = 4
# An object's key may be the empty string; nothing else that a path names is.
_EMPTY_ALLOWED = "{key}"
_PREFIXES = {f"v{version}": version for version in range(VERSION_MIN, VERSION_MAX + 1)}


@dataclass(frozen=True, slots=True)
class Route(Generic[E]):
    """``pattern``: a path; a segment in braces matches any and names it. ``body``: its shape."""

    method: str
    pattern: str
    endpoint: E
    body: type | None = None


@dataclass(frozen=True, slots=True)
class Match(Generic[E]):
    """Where a request goes, with what its path and query say."""

    endpoint: E
    version: int
    parameters: dict[str, str]
    query: dict[str, str]


class WrongMethod(Exception):
    """The path exists for other methods: ``allowed``."""

    def __init__(self, error: MethodNotAllowed, allowed: str) -> None:
        super().__init__(error.message)
        self.error = error
        self.allowed = allowed


class Router(Generic[E]):
    """A table of routes."""

    def __init__(self, routes: Sequence[Route[E]]) -> None:
        self._routes = [(route, route.pattern.strip("/").split("/")) for route in routes]

    def match(self, method: str, target: str) -> Match[E]:
        """The endpoint of a request.

        Raises:
            NotFound, BadRequest: there is none; the path can't be read.
            WrongMethod: there is one, for another method.
        """
        path, _, query = target.partition("?")
        segments = path.split("/")[1:]
        version = 0
        if segments and segments[0] in _PREFIXES:
            version = _PREFIXES[segments[0]]
            segments = segments[1:] or [""]
        elif segments and segments[0] == "v1":
            raise BadRequest(f"admin API v1 is not served: use v{VERSION_MIN} to v{VERSION_MAX}")
        wanted = "GET" if method == "HEAD" else method
        allowed: set[str] = set()
        for route, pattern in self._routes:
            parameters = _bind(pattern, segments)
            if parameters is None:
                continue
            if route.method == wanted:
                return Match(route.endpoint, version, parameters, _parse_query(query))
            allowed.add(route.method)
        if not allowed:
            raise NotFound(f"there is nothing at {path}")
        if "GET" in allowed:
            allowed.add("HEAD")
        error = MethodNotAllowed(f"{path} takes {', '.join(sorted(allowed))}, not {method}")
        raise WrongMethod(error, ", ".join(sorted(allowed)))


def _bind(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    parameters: dict[str, str] = {}
    for expected, found in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            if not found and expected != _EMPTY_ALLOWED:
                return None
            try:
                parameters[expected[1:-1]] = unquote(found, errors="strict")
            except UnicodeDecodeError as error:
                raise BadRequest(f"path segment {found!r} is not UTF-8") from error
        elif expected != found:
            return None
    return parameters


def _parse_query(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError as error:
        raise BadRequest(f"the query string can't be read: {error}") from error
    found: dict[str, str] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return found
