"""Requests and responses as the payloads that AWS Lambda carries: JSON, bodies in base64.

SDKs that say so take and give bodies compressed with Zstandard; its library is imported only for
those.
"""

import base64
import binascii
from dataclasses import dataclass

import msgspec

from perdure.core.limits import FUNCTION_BODY_BYTES_MAX
from perdure.node.http.ports import Headers

_COMPRESSION_LEVEL = 3
_NO_LIBRARY = (
    "bodies are compressed, which needs the package zstandard: pip install 'perdure[lambda]'"
)


class BadPayload(ValueError):
    """A function answered with something else than a response."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a function answered. Header names in lower case."""

    status: int
    headers: Headers
    body: bytes


class _Request(msgspec.Struct, rename="camel"):
    path: str
    http_method: str
    headers: dict[str, str]
    body: str
    is_base64_encoded: bool = msgspec.field(name="isBase64Encoded", default=True)


class _Response(msgspec.Struct, rename="camel"):
    status_code: int
    headers: dict[str, str] | None = None
    body: str | None = None
    is_base64_encoded: bool = msgspec.field(name="isBase64Encoded", default=False)


def encode_request(
    method: str,
    path: str,
    headers: Headers,
    body: bytes,
    compresses_from: int | None,
) -> bytes:
    """The payload of a request; of headers of one name the last counts.

    ``compresses_from``: None where the SDK takes no compressed bodies, or the size from which on
    they are compressed.
    """
    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    if compresses_from is not None:
        fields["accept-encoding"] = "zstd"
        if body and len(body) >= compresses_from:
            body = _compress(body)
            fields["content-encoding"] = "zstd"
    text = base64.b64encode(body).decode()
    return msgspec.json.encode(_Request(path, method, fields, text))


def decode_response(payload: bytes) -> Response:
    """What a function answered.

    Raises:
        BadPayload: it is no response.
    """
    if not payload:
        raise BadPayload("the function returned nothing")
    try:
        response = msgspec.json.decode(payload, type=_Response)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadPayload(f"the function's answer is no response: {error}") from error
    fields = [
        (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in (response.headers or {}).items()
    ]
    body = (response.body or "").encode()
    if response.is_base64_encoded:
        try:
            body = base64.b64decode(body, validate=True)
        except binascii.Error as error:
            raise BadPayload(f"the function's answer is no response: {error}") from error
    if dict(fields).get(b"content-encoding") == b"zstd":
        body = _decompress(body)
    return Response(response.status_code, fields, body)


def _compress(body: bytes) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise BadPayload(_NO_LIBRARY) from error
    return zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL).compress(body)


def _decompress(body: bytes) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise BadPayload(_NO_LIBRARY) from error
    try:
        with zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True) as reader:
            found = reader.read(FUNCTION_BODY_BYTES_MAX + 1)
    except zstandard.ZstdError as error:
        raise BadPayload(f"the function's answer can't be decompressed: {error}") from error
    if len(found) > FUNCTION_BODY_BYTES_MAX:
        raise BadPayload(f"the function's answer exceeds {FUNCTION_BODY_BYTES_MAX} bytes")
    return found
