"""What a request's path asks for: a table of routes, and a value per kind of request. Pure.

Trailing slashes and repeated leading ones don't count; an empty segment in the middle does, for
``/Object//handler`` names the object whose key is the empty string. Whether a key is expected is
the registered service's business. Keys and scopes are percent-decoded, names compared as they came.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote_to_bytes

from perdure.core.errors import BadRequest, NotFound
from perdure.core.ids import IdError, InvocationId, parse_awakeable_id, parse_invocation_id
from perdure.core.limits import INGRESS_PATH_SLASHES_MAX, INGRESS_PATH_SLASHES_MIN
from perdure.engine.journal import idempotent_invocation_id, workflow_invocation_id
from perdure.node.registry.model import ServiceType

RESERVED = "restate"
_SIGNAL_INDEX_MIN = 16
"""Signals below are the protocol's own, such as cancellation; no awakeable has them."""

TypeOf = Callable[[str], ServiceType | None]
"""The registered type of a service, None for an unknown one."""


class Verb(Enum):
    """What is wanted of an invocation that a caller names."""

    ATTACH = "attach"
    OUTPUT = "output"
    LOOKUP = "lookup"


@dataclass(frozen=True, slots=True)
class Call:
    """Call a handler and wait for its result, or only send. ``key`` is None for plain services."""

    service: str
    handler: str
    key: str | None
    is_send: bool
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class Fetch:
    """Wait for an invocation's result (ATTACH) or fetch it if it is there (OUTPUT)."""

    id: InvocationId
    verb: Verb


@dataclass(frozen=True, slots=True)
class FetchByBody:
    """As ``Fetch``, or LOOKUP of the id alone; the body names the invocation."""

    verb: Verb


@dataclass(frozen=True, slots=True)
class CompleteAwakeable:
    """Resolve or reject. ``target`` is None for ids of a kind that nobody here waits for."""

    target: tuple[InvocationId, int] | None
    is_resolve: bool


@dataclass(frozen=True, slots=True)
class Health:
    """Is somebody there, and what is served?"""


Request = Call | Fetch | FetchByBody | CompleteAwakeable | Health


def parse_path(target: str, type_of: TypeOf) -> Request:
    """The request at a raw request target (path and query).

    Raises:
        BadRequest: the path has not the shape of any route, or a part of it can't be read.
        NotFound: nothing of this name is here.
    """
    segments = _segments(target)
    first = segments[0]
    if first == RESERVED:
        route = _RESERVED_ROUTES.get(segments[1])
        if route is None:
            raise NotFound(f"there is nothing at /{RESERVED}/{segments[1]}")
        return route(segments[2:], type_of)
    if first == "openapi":
        raise NotFound("OpenAPI documents are served on the admin port: /services/{name}/openapi")
    return _short_call(segments, type_of)


def normalize(target: str) -> str:
    """Path and query without authority, trailing slashes, and all but one leading slash."""
    path, mark, query = target.partition("?")
    if not path.startswith("/") and "://" in path:
        # The absolute form, which proxies send.
        path = path.partition("://")[2].partition("/")[2]
    return f"/{path.strip('/')}{mark}{query}"


def decode_segment(raw: str) -> str:
    """A key or scope as its sender meant it: percent-decoded, ``+`` and malformed ``%`` kept.

    Raises:
        BadRequest: not UTF-8.
    """
    if "%" not in raw and raw.isascii():
        return raw
    try:
        return unquote_to_bytes(raw.encode("latin-1")).decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"path segment {raw!r} is not UTF-8 once decoded") from error


def parse_id(text: str) -> InvocationId:
    """An invocation id that a client wrote.

    Raises:
        BadRequest: with what is wrong with it.
    """
    try:
        return parse_invocation_id(text)
    except IdError as error:
        raise BadRequest(f"{text!r} is not an invocation id: {error}") from error


def _segments(target: str) -> list[str]:
    path = normalize(target).partition("?")[0]
    if not INGRESS_PATH_SLASHES_MIN <= path.count("/") <= INGRESS_PATH_SLASHES_MAX:
        raise BadRequest(
            "bad path: call a handler at /{service}/{handler} or /{service}/{key}/{handler}, or "
            f"use one of the routes below /{RESERVED}"
        )
    return path[1:].split("/")


def _type_of(service: str, type_of: TypeOf) -> ServiceType:
    found = type_of(service)
    if found is None:
        raise NotFound(f"there is no service {service!r}: is its deployment registered?")
    return found


# --- Calls --------------------------------------------------------------------------------------


def _short_call(segments: list[str], type_of: TypeOf) -> Call:
    """``/{service}[/{key}]/{handler}[/send]``."""
    service = segments[0]
    is_keyed = _type_of(service, type_of).is_keyed
    size = 3 if is_keyed else 2
    is_send = len(segments) == size + 1 and segments[-1] == "send"
    if len(segments) != size and not is_send:
        form = f"/{service}/{{key}}/{{handler}}" if is_keyed else f"/{service}/{{handler}}"
        raise BadRequest(f"bad path: expected {form}, or the same with /send after it")
    key = decode_segment(segments[1]) if is_keyed else None
    return Call(service, segments[size - 1], key, is_send)


def _call(rest: list[str], type_of: TypeOf) -> Call:
    return _long_call(rest, type_of, False, None)


def _send(rest: list[str], type_of: TypeOf) -> Call:
    return _long_call(rest, type_of, True, None)


def _scoped(rest: list[str], type_of: TypeOf) -> Call:
    if len(rest) < 2:
        raise BadRequest(f"bad path: expected /{RESERVED}/scope/{{scope}}/call|send/…")
    if rest[1] not in ("call", "send"):
        raise BadRequest(f"bad path: a scope has no {rest[1]!r}, use call or send")
    return _long_call(rest[2:], type_of, rest[1] == "send", rest[0])


def _long_call(rest: list[str], type_of: TypeOf, is_send: bool, scope: str | None) -> Call:
    """``{service}[/{key}]/{handler}`` after the verb."""
    if not rest:
        raise BadRequest("bad path: a service and a handler are expected after the verb")
    is_keyed = _type_of(rest[0], type_of).is_keyed
    if len(rest) != (3 if is_keyed else 2):
        form = "{service}/{key}/{handler}" if is_keyed else "{service}/{handler}"
        raise BadRequest(f"bad path: expected {form} after the verb, and nothing else")
    key = decode_segment(rest[1]) if is_keyed else None
    if scope is not None:
        scope = decode_segment(scope)
    return Call(rest[0], rest[-1], key, is_send, scope)


# --- Invocations that are there -----------------------------------------------------------------


def _invocation(rest: list[str], type_of: TypeOf) -> Fetch:
    """``{id}/{verb}`` or ``{service}[/{key}]/{handler}/{idempotency key}/{verb}``."""
    if len(rest) == 2:
        verb = _verb(rest[1])
        return Fetch(parse_id(rest[0]), verb)
    if len(rest) < 2:
        raise BadRequest(f"bad path: expected /{RESERVED}/invocation/{{id}}/attach|output")
    is_keyed = _type_of(rest[0], type_of).is_keyed
    if len(rest) != (5 if is_keyed else 4):
        form = "{service}/{key}/{handler}" if is_keyed else "{service}/{handler}"
        raise BadRequest(f"bad path: expected {form}/{{idempotency key}}/attach|output")
    verb = _verb(rest[-1])
    key = decode_segment(rest[1]) if is_keyed else None
    return Fetch(idempotent_invocation_id(rest[0], key, rest[-3], rest[-2]), verb)


def _workflow(rest: list[str], type_of: TypeOf) -> Fetch:
    if len(rest) != 3:
        raise BadRequest(f"bad path: expected /{RESERVED}/workflow/{{name}}/{{key}}/attach|output")
    verb = _verb(rest[2])
    return Fetch(workflow_invocation_id(rest[0], decode_segment(rest[1])), verb)


def _attach(rest: list[str], type_of: TypeOf) -> Fetch | FetchByBody:
    return _by_id_or_body(rest, Verb.ATTACH)


def _output(rest: list[str], type_of: TypeOf) -> Fetch | FetchByBody:
    return _by_id_or_body(rest, Verb.OUTPUT)


def _lookup(rest: list[str], type_of: TypeOf) -> FetchByBody:
    if rest:
        raise BadRequest(f"bad path: expected /{RESERVED}/lookup, and the target in the body")
    return FetchByBody(Verb.LOOKUP)


def _by_id_or_body(rest: list[str], verb: Verb) -> Fetch | FetchByBody:
    if not rest:
        return FetchByBody(verb)
    if len(rest) > 1:
        raise BadRequest(f"bad path: expected /{RESERVED}/{verb.value}/{{invocation id}}")
    return Fetch(parse_id(rest[0]), verb)


def _verb(text: str) -> Verb:
    if text == "attach":
        return Verb.ATTACH
    if text == "output":
        return Verb.OUTPUT
    raise NotFound(f"an invocation has no {text!r}: use attach or output")


# --- The rest -----------------------------------------------------------------------------------


def _awakeable(rest: list[str], type_of: TypeOf) -> CompleteAwakeable:
    if len(rest) != 2:
        raise BadRequest(f"bad path: expected /{RESERVED}/awakeables/{{id}}/resolve|reject")
    if rest[1] not in ("resolve", "reject"):
        raise NotFound(f"an awakeable has no {rest[1]!r}: use resolve or reject")
    try:
        target = parse_awakeable_id(rest[0])
    except IdError as error:
        raise BadRequest(f"{rest[0]!r} is not an awakeable's id: {error}") from error
    if target is not None and target[1] < _SIGNAL_INDEX_MIN:
        raise BadRequest(f"{rest[0]!r} names signal {target[1]}, which is no awakeable")
    return CompleteAwakeable(target, rest[1] == "resolve")


def _health(rest: list[str], type_of: TypeOf) -> Health:
    return Health()


_RESERVED_ROUTES: dict[str, Callable[[list[str], TypeOf], Request]] = {
    "call": _call,
    "send": _send,
    "scope": _scoped,
    "invocation": _invocation,
    "workflow": _workflow,
    "attach": _attach,
    "output": _output,
    "lookup": _lookup,
    "awakeables": _awakeable,
    "a": _awakeable,
    "health": _health,
}
