"""Answers as values: status, headers, body. Pure; one format for every error.

An error's body is ``{"code", "message", "source"}``: ``source`` (also a header) tells whether the
ingress refused the request or the invocation failed, which clients need to know before they retry.
The ingress's own errors add their stable code as ``restate_code``, like those of the admin port.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from perdure.core.errors import PerdureError
from perdure.core.ids import PartitionId
from perdure.node.http.ports import Headers
from perdure.node.ingress.submission import is_visible
from perdure.storage.tables.invocations import Failure

_JSON = (b"content-type", b"application/json")
_SOURCE_INGRESS = (b"x-restate-error-source", b"ingress")
_SOURCE_INVOCATION = (b"x-restate-error-source", b"invocation")
_VARY = (
    b"vary",
    b"origin, access-control-request-method, access-control-request-headers",
)
_CREDENTIALS = (b"access-control-allow-credentials", b"true")
_MIRRORED = (
    (b"access-control-request-method", b"access-control-allow-methods"),
    (b"access-control-request-headers", b"access-control-allow-headers"),
)
# Statuses that HTTP gives no body, or that don't end an exchange.
_BODILESS = frozenset({204, 205, 304})
# The last moment that has a date: retentions may be "for ever".
_TIME_MS_MAX = 253_402_300_799_999
_ENCODE = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """What goes back; length, date and the CORS headers are added."""

    status: int
    headers: Headers
    body: bytes = b""


class _Error(msgspec.Struct, omit_defaults=True):
    code: int
    message: str
    source: str
    restate_code: str = ""
    stacktrace: str = ""
    metadata: dict[str, str] = {}


class _Sent(msgspec.Struct, omit_defaults=True, rename="camel"):
    invocation_id: str
    execution_time: str = ""
    status: str = ""


class _Health(msgspec.Struct, omit_defaults=True):
    services: list[str]
    halted_partitions: list[PartitionId] = []


def output(content_type: str | None, id_text: str, expires_at_ms: int, value: bytes) -> Answer:
    """A handler's output. ``expires_at_ms`` is 0 unless it was read from storage."""
    headers = _about(id_text, expires_at_ms)
    if content_type is not None and is_visible(content_type):
        headers.append((b"content-type", content_type.encode()))
    return Answer(200, headers, value)


def failure(result: Failure, id_text: str, expires_at_ms: int) -> Answer:
    """An invocation's terminal error: its code is the status, where HTTP has such a status."""
    code = result.code
    status = code if 200 <= code <= 599 and code not in _BODILESS else 500
    body = _Error(code, result.message, "invocation", "", result.stacktrace, dict(result.metadata))
    headers = _about(id_text, expires_at_ms)
    headers += (_SOURCE_INVOCATION, _JSON)
    return Answer(status, headers, _ENCODE(body))


def refusal(error: PerdureError, id_text: str | None = None) -> Answer:
    """An error of the ingress itself; ``id_text`` when an invocation is known to be meant."""
    headers = _about(id_text, 0) if id_text is not None else []
    headers += (_SOURCE_INGRESS, _JSON)
    body = _Error(error.http_status, error.message, "ingress", error.code)
    return Answer(error.http_status, headers, _ENCODE(body))


def sent(id_text: str, execute_at_ms: int, is_new: bool) -> Answer:
    """A send was accepted, now or before. ``execute_at_ms`` is 0 unless it is delayed."""
    time = ""
    if execute_at_ms:
        time = _moment(execute_at_ms).strftime("%Y-%m-%dT%H:%M:%S.")
        time += f"{execute_at_ms % 1000:03d}000000Z"
    body = _Sent(id_text, time, "Accepted" if is_new else "PreviouslyAccepted")
    return Answer(202, [*_about(id_text, 0), _JSON], _ENCODE(body))


def found(id_text: str) -> Answer:
    """The id that a lookup asked for."""
    return Answer(200, [_JSON], _ENCODE(_Sent(id_text)))


def health(services: Iterable[str], halted: list[PartitionId]) -> Answer:
    """We are here, and serve these; but for the keys of partitions that are halted."""
    return Answer(200, [_JSON], _ENCODE(_Health(sorted(services), halted)))


def accepted() -> Answer:
    """An awakeable was completed, if anybody waits for it."""
    return Answer(202, [])


def preflight(request_headers: Headers) -> Answer:
    """Whatever a browser asks to be allowed, is."""
    asked = dict(reversed(request_headers))
    headers = [
        (allow, asked[request])
        for request, allow in _MIRRORED
        if request in asked and is_visible(asked[request].decode("latin-1"))
    ]
    return Answer(200, headers)


def shared_with(origin: bytes | None) -> Headers:
    """The CORS headers of an answer to a page of ``origin``."""
    if origin is None or not is_visible(origin.decode("latin-1")):
        return [_VARY, _CREDENTIALS]
    return [_VARY, (b"access-control-allow-origin", origin), _CREDENTIALS]


def _about(id_text: str, expires_at_ms: int) -> Headers:
    headers = [(b"x-restate-id", id_text.encode())]
    if expires_at_ms:
        headers.append((b"idempotency-expires", _rfc3339_ms(expires_at_ms)))
    return headers


def _rfc3339_ms(time_ms: int) -> bytes:
    return _moment(time_ms).isoformat(timespec="milliseconds").encode()


def _moment(time_ms: int) -> datetime:
    time_ms = min(time_ms, _TIME_MS_MAX)
    moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    return moment.replace(microsecond=time_ms % 1000 * 1000)
