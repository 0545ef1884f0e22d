"""From an HTTP request to the Invoke command, or the reason why not. Pure but for clock and dice.

The order of the checks is part of the contract: it decides which error a request with several
faults gets.
"""

import re
from typing import Protocol
from urllib.parse import parse_qsl

from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import BadRequest, MethodNotAllowed, NotFound
from perdure.engine.commands import Invoke
from perdure.engine.notifications import input_entry
from perdure.node.http.ports import Headers
from perdure.node.ingress.content import check_input
from perdure.node.ingress.delays import parse_delay_ms
from perdure.node.ingress.paths import Call, normalize
from perdure.node.ingress.targets import SCOPES_UNAVAILABLE
from perdure.node.invoker.validation import new_invocation_id
from perdure.node.registry.effective import Route
from perdure.storage.tables.invocations import HandlerKind, Source, SourceKind, Target

PATH_HEADER = "x-restate-ingress-path"
METHODS = frozenset({"GET", "POST"})
_NOT_FORWARDED = frozenset({"connection", "host", "idempotency-key", "idempotency-expires"})
_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,36}")
_LIMIT_KEY = re.compile(r"[A-Za-z0-9_.-]{1,36}(/[A-Za-z0-9_.-]{1,36})?")
_REQUEST_BITS = 48
_SOURCE = Source(SourceKind.INGRESS)


class Arrived(Protocol):
    """A request as it came: method, raw path and query, headers with lower-case names, body."""

    @property
    def method(self) -> str: ...

    @property
    def target(self) -> str: ...

    @property
    def headers(self) -> Headers: ...

    @property
    def body(self) -> bytes: ...


def make_invoke(
    call: Call, route: Route | None, arrived: Arrived, clock: Clock, entropy: Entropy
) -> Invoke:
    """The command that starts the invocation.

    Raises:
        NotFound, BadRequest, MethodNotAllowed: the first check that fails.
    """
    if route is None:
        raise NotFound(f"service {call.service!r} has no handler {call.handler!r}")
    kind = route.handler.kind
    fields, misread = _fields(arrived.headers)
    idempotency_key = fields.get("idempotency-key")
    _check_callable(call, route, idempotency_key is not None)
    if arrived.method not in METHODS:
        raise MethodNotAllowed(f"handlers are called with POST or GET, not {arrived.method}")
    check_input(route.handler, fields.get("content-type"), arrived.body)
    query = _query(arrived.target)
    delay = query.get("delay")
    delay_ms = parse_delay_ms(delay) if delay is not None else None
    _check_limit_key(fields.get("x-restate-limit-key", query.get("limit-key", "")))
    if misread is not None:
        raise BadRequest(f"header {misread!r} has characters outside of visible ASCII")
    if delay_ms is not None and not call.is_send:
        raise BadRequest("delay is for sends: a call waits for its result, so it starts at once")
    target = Target(call.service, call.handler, call.key, kind)
    completion_ms, journal_ms = route.effective.retention(kind, idempotency_key is not None)
    forwarded = [(PATH_HEADER, normalize(arrived.target))]
    forwarded += [field for field in fields.items() if field[0] not in _NOT_FORWARDED]
    return Invoke(
        id=new_invocation_id(target, idempotency_key, clock, entropy),
        target=target,
        source=_source(kind, entropy),
        sink=None,
        execute_at_ms=0 if delay_ms is None else clock.now_ms() + delay_ms,
        idempotency_key=idempotency_key,
        completion_retention_ms=completion_ms,
        journal_retention_ms=journal_ms,
        input=input_entry(forwarded, arrived.body),
    )


def _source(kind: int, entropy: Entropy) -> Source:
    if kind != HandlerKind.WORKFLOW_RUN:
        return _SOURCE
    # Whoever runs a workflow a second time is told so, but not because a command came twice.
    return Source(SourceKind.INGRESS, request=entropy.bits(_REQUEST_BITS))


def is_visible(text: str) -> bool:
    """Whether a header's value is visible ASCII (blanks and tabs included)."""
    if text.isascii() and text.isprintable():
        return True
    return text.isascii() and text.replace("\t", " ").isprintable()


def _fields(headers: Headers) -> tuple[dict[str, str], str | None]:
    """First value per name, in received order; and the name of a field that isn't ASCII."""
    fields: dict[str, str] = {}
    misread: str | None = None
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if not is_visible(value):
            misread = name
        fields.setdefault(name, value)
    return fields, misread


def _query(target: str) -> dict[str, str]:
    """First value per name, names in lower case."""
    _, mark, text = target.partition("?")
    found: dict[str, str] = {}
    if mark:
        for name, value in parse_qsl(text, keep_blank_values=True):
            found.setdefault(name.lower(), value)
    return found


def _check_callable(call: Call, route: Route, has_idempotency_key: bool) -> None:
    if not route.effective.public:
        raise BadRequest(f"{call.service}/{call.handler} is private: only services may call it")
    if not route.is_supported:
        raise BadRequest(
            f"service {call.service!r} is on deployment {route.deployment_id}, whose service "
            "protocol is no longer supported: register it with a newer SDK"
        )
    if has_idempotency_key and route.handler.kind == HandlerKind.WORKFLOW_RUN:
        raise BadRequest("a workflow runs once per key: it takes no idempotency-key")
    if call.scope is not None:
        if not _SCOPE.fullmatch(call.scope):
            raise BadRequest(f"scope {call.scope!r} is not 1 to 36 of A-Z a-z 0-9 _ . -")
        raise BadRequest(SCOPES_UNAVAILABLE)


def _check_limit_key(limit_key: str) -> None:
    if not limit_key:
        return
    if not _LIMIT_KEY.fullmatch(limit_key):
        raise BadRequest(
            f"limit key {limit_key!r} is not one or two parts of 1 to 36 of A-Z a-z 0-9 _ . - "
            "with a slash between them"
        )
    raise BadRequest("a limit key needs a scope")
