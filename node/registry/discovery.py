"""Discovery as decisions: what an endpoint is asked, and what its answer means. Pure.

``node/invoker/discovery.py`` does the asking.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from perdure.core.errors import (
    BadManifest,
    BadRequest,
    DiscoveryFailed,
    EndpointSpeaksHttp1,
    PerdureError,
    StreamModeUnsupported,
)
from perdure.core.limits import MANIFEST_BYTES_MAX
from perdure.core.retry import RetryPolicy
from perdure.node.http.ports import Headers
from perdure.node.http.stream import Origin, StreamFailure
from perdure.node.registry.effective import locate
from perdure.node.registry.manifest import MANIFEST_TYPES, Discovered, parse_manifest
from perdure.node.registry.model import Function

HTTP_1 = "HTTP/1.1"
HTTP_2 = "HTTP/2.0"
DISCOVERY_PATH = "/discover"

_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
# What HTTP itself decides on a connection; a second one would contradict it.
_CONNECTION_HEADERS = frozenset(
    {"connection", "content-length", "host", "transfer-encoding", "upgrade", "te", "keep-alive"}
)
_UNTRUSTED = (
    ": it does not trust this node. A service with identity keys takes only requests that are "
    "signed with one of them (invoker.request-identity-private-key-pem-file)"
)
_STATUS_ADVICE = {401: _UNTRUSTED, 404: ": is this the address of a service?"}
_SDK_VERSION_LENGTH_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where services are said to be: at a URI, or in a function, which is asked without HTTP.

    ``headers`` are sent with every request to it.
    """

    uri: str = ""
    use_http_11: bool = False
    headers: dict[str, str] = field(default_factory=dict[str, str])
    function: Function | None = None

    @property
    def address(self) -> str:
        """A URI, or a function's ARN."""
        return self.uri if self.function is None else self.function.arn


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A complete response."""

    status: int
    headers: Headers
    body: bytes
    http_version: str

    def header(self, name: bytes) -> str | None:
        """The first value of a header."""
        for known, value in self.headers:
            if known == name:
                return value.decode("latin-1")
        return None


@dataclass(frozen=True, slots=True)
class TooLong:
    """The body exceeded ``MANIFEST_BYTES_MAX``, or the answer ``DISCOVERY_TIMEOUT_MS``."""

    what: str
    is_final: bool


Heard = Answer | StreamFailure | TooLong


@dataclass(frozen=True, slots=True)
class Again:
    """Ask again; when there were tries enough, raise ``error``."""

    error: PerdureError


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A valid manifest, and the HTTP version it came over."""

    discovered: Discovered
    http_version: str


def check_headers(headers: dict[str, str]) -> dict[str, str]:
    """The headers with lower-case names.

    Raises:
        BadRequest: a header that HTTP can't carry, or that isn't ours to set.
    """
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _CONNECTION_HEADERS:
            raise BadRequest(f"additional_headers: {name!r} can't be set as a header")
        if not _HEADER_VALUE.fullmatch(value):
            raise BadRequest(f"additional_headers: the value of {name!r} isn't printable ASCII")
        checked[name.lower()] = value.strip()
    return checked


def request(endpoint: Endpoint, cluster_name: str) -> tuple[Origin, str, Headers]:
    """Where to connect, the request target, and the headers.

    Cleartext is HTTP/2 with prior knowledge unless HTTP/1.1 was asked for, because SDKs infer from
    the version of this very request how they want to be called; over TLS it is negotiated.
    """
    is_cleartext = urlsplit(endpoint.uri).scheme == "http"
    version = HTTP_1 if endpoint.use_http_11 else (HTTP_2 if is_cleartext else None)
    origin, prefix, query = locate(endpoint.uri, version)
    return origin, f"{prefix}{DISCOVERY_PATH}{query}", request_headers(endpoint, cluster_name)


def request_headers(endpoint: Endpoint, cluster_name: str) -> Headers:
    """The headers of the question."""
    headers: Headers = [
        (b"accept", ", ".join(MANIFEST_TYPES).encode()),
        (b"x-restate-cluster-name", cluster_name.encode()),
    ]
    headers.extend((name.encode(), value.encode()) for name, value in endpoint.headers.items())
    return headers


def judge(endpoint: Endpoint, heard: Heard) -> Found | Again:
    """What an answer, or the lack of one, means.

    Raises:
        PerdureError: this endpoint can't be registered as it is; asking again won't help.
    """
    match heard:
        case StreamFailure(kind="broken") if _is_prior_knowledge(endpoint):
            raise EndpointSpeaksHttp1(
                f"{endpoint.address} doesn't answer in HTTP/2 ({heard.message}): if it speaks "
                'HTTP/1.1 only, register it with "use_http_11": true'
            )
        case StreamFailure(kind="broken") if endpoint.function is not None:
            raise DiscoveryFailed(f"{endpoint.address}: {heard.message}")
        case StreamFailure():
            hint = ""
            if heard.kind == "lost" and _is_prior_knowledge(endpoint):
                hint = '; if it speaks HTTP/1.1 only, register it with "use_http_11": true'
            return Again(DiscoveryFailed(f"{endpoint.address}: {heard.message}{hint}"))
        case TooLong(what=what, is_final=is_final):
            if is_final:
                raise BadManifest(f"{endpoint.address}: {what}")
            return Again(DiscoveryFailed(f"{endpoint.address}: {what}"))
        case Answer():
            return _judge_answer(endpoint, heard)


def is_too_large(size: int) -> bool:
    """Whether a body of this size is no manifest."""
    return size > MANIFEST_BYTES_MAX


def schedule(initial_ms: int, retries_max: int) -> RetryPolicy:
    """How discovery is retried: doubling delays."""
    return RetryPolicy(
        initial_ms=initial_ms, factor=2.0, interval_ms_max=None, attempts_max=retries_max + 1
    )


def _judge_answer(endpoint: Endpoint, answer: Answer) -> Found | Again:
    status = answer.status
    if not 200 <= status < 300:
        error = DiscoveryFailed(
            f"{endpoint.address} answered discovery with HTTP status {status}"
            + _STATUS_ADVICE.get(status, "")
        )
        if status in _RETRIED_STATUSES:
            return Again(error)
        raise error
    content_type = answer.header(b"content-type")
    if content_type not in MANIFEST_TYPES:
        raise BadManifest(
            f"{endpoint.address} answered discovery with content type {content_type!r}, expected "
            f"one of {', '.join(MANIFEST_TYPES)}: is this the address of a service?"
        )
    sdk_version = answer.header(b"x-restate-server")
    if sdk_version is not None:
        sdk_version = sdk_version[:_SDK_VERSION_LENGTH_MAX]
    discovered = parse_manifest(answer.body, sdk_version)
    if endpoint.function is not None and discovered.is_bidirectional:
        raise StreamModeUnsupported(
            f"{endpoint.address} announces streaming in both directions, which functions can't do: "
            "serve it with the SDK's handler for AWS Lambda"
        )
    return Found(discovered=discovered, http_version=answer.http_version)


def _is_prior_knowledge(endpoint: Endpoint) -> bool:
    return not endpoint.use_http_11 and urlsplit(endpoint.address).scheme == "http"
