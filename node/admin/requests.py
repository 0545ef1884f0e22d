"""What endpoints of the admin API take and give, as values. Pure; one format for every error."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from perdure.core.errors import BadRequest, PerdureError, Unprocessable, UnsupportedMediaType
from perdure.core.ids import IdError, InvocationId, parse_deployment_id, parse_invocation_id
from perdure.node.http.ports import Headers

T = TypeVar("T")

_JSON = (b"content-type", b"application/json")
_ENCODE = msgspec.json.Encoder().encode
# The last moment that has a date: retentions may be "for ever".
_TIME_MS_MAX = 253_402_300_799_999
_DIGITS_MAX = 12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BOOLEANS = {"true": True, "false": False}


class Pieces(Protocol):
    """The rest of a body as it is made; closed when nobody wants it any more."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class Reply(NamedTuple):
    """What goes back; length and date are added. With ``rest`` the body goes on, in pieces."""

    status: int
    headers: Headers
    body: bytes = b""
    rest: Pieces | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request at its endpoint. ``version``: of the API, by the path's prefix; 0 without one."""

    method: str
    version: int
    parameters: dict[str, str]
    query: dict[str, str]
    content_type: str | None
    body: bytes
    accept: str | None = None

    def json(self, shape: type[T]) -> T:
        """The body as a ``shape``.

        Raises:
            UnsupportedMediaType: it isn't said to be JSON.
            BadRequest, Unprocessable: it isn't JSON; it is, but of another shape.
        """
        media = (self.content_type or "").partition(";")[0].strip().lower()
        if media != "application/json" and not media.endswith("+json"):
            raise UnsupportedMediaType("send the body with content-type: application/json")
        try:
            return msgspec.json.decode(self.body, type=shape)
        except msgspec.ValidationError as error:
            raise Unprocessable(f"the body doesn't fit: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the body is not valid JSON: {error}") from error

    def flag(self, name: str, default: bool) -> bool:
        """A boolean of the query.

        Raises:
            BadRequest: it is neither true nor false.
        """
        text = self.query.get(name)
        if text is None:
            return default
        if text not in _BOOLEANS:
            raise BadRequest(f"query parameter {name!r}: expected true or false, not {text!r}")
        return _BOOLEANS[text]

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A number of the query in ``[least, most]``.

        Raises:
            BadRequest: it is not.
        """
        text = self.query.get(name)
        if text is None:
            return default
        is_number = text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
        if not is_number or not least <= int(text) <= most:
            raise BadRequest(f"query parameter {name!r}: expected a number from {least} to {most}")
        return int(text)

    def moment(self, name: str) -> int | None:
        """A time of the query, in milliseconds.

        Raises:
            BadRequest: it is no RFC 3339 time with an offset or ``Z``.
        """
        text = self.query.get(name)
        if text is None:
            return None
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            found = None
        if found is None or found.tzinfo is None:
            raise BadRequest(
                f"query parameter {name!r}: expected a time like 2026-01-31T12:00:00Z, not {text!r}"
            )
        return (found - _EPOCH) // timedelta(milliseconds=1)


def json_reply(status: int, document: object, *headers: tuple[bytes, bytes]) -> Reply:
    """A JSON document."""
    return Reply(status, [_JSON, *headers], _ENCODE(document))


def empty_reply(status: int) -> Reply:
    """No body."""
    return Reply(status, [])


def error_reply(error: PerdureError, *headers: tuple[bytes, bytes]) -> Reply:
    """The one format of errors; known clients read ``message`` and ``restate_code``."""
    document = {"message": str(error), "restate_code": error.code}
    return json_reply(error.http_status, document, *headers)


def parse_invocation(text: str) -> InvocationId:
    """The id in a path or body.

    Raises:
        BadRequest: it is none.
    """
    try:
        return parse_invocation_id(text)
    except IdError as error:
        raise BadRequest(f"invocation_id {text!r} is not valid: {error}") from error


def check_deployment_id(text: str) -> str:
    """The id in a path or query.

    Raises:
        BadRequest: it is none.
    """
    try:
        parse_deployment_id(text)
    except IdError as error:
        raise BadRequest(f"deployment {text!r} is not valid: {error}") from error
    return text


def moment(time_ms: int) -> str:
    """RFC 3339 in UTC with a ``Z``: what clients parse."""
    seconds, rest_ms = divmod(min(time_ms, _TIME_MS_MAX), 1000)
    stamp = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest_ms * 1000)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
