"""What an endpoint is asked, and what its answers mean."""

import pytest

from perdure.core.errors import (
    BadManifest,
    BadRequest,
    DiscoveryFailed,
    EndpointSpeaksHttp1,
    PerdureError,
    ProtocolRangeUnsupported,
)
from perdure.core.limits import DISCOVERY_RETRIES_MAX, DISCOVERY_RETRY_INITIAL_MS
from perdure.node.http.stream import StreamFailure
from perdure.node.registry.discovery import (
    Again,
    Answer,
    Endpoint,
    Found,
    Heard,
    TooLong,
    check_headers,
    judge,
    request,
    schedule,
)
from perdure.node.registry.manifest import MANIFEST_TYPES

_PLAIN = Endpoint(uri="http://h:1/base?x=1", headers={"authorization": "Bearer t"})
_MANIFEST = (
    b'{"protocolMode": "BIDI_STREAM", "minProtocolVersion": 5, "maxProtocolVersion": 7,'
    b' "services": [{"name": "A", "ty": "SERVICE", "handlers": [{"name": "run"}]}]}'
)


def answer(
    status: int = 200, content_type: str | None = MANIFEST_TYPES[0], body: bytes = _MANIFEST
) -> Answer:
    headers = [(b"x-restate-server", b"sdk/1.0")]
    if content_type is not None:
        headers.append((b"content-type", content_type.encode()))
    return Answer(status=status, headers=headers, body=body, http_version="HTTP/2.0")


@pytest.mark.parametrize(
    ("uri", "use_http_11", "version"),
    [
        ("http://h/", False, "HTTP/2.0"),
        ("http://h/", True, "HTTP/1.1"),
        ("https://h/", False, None),
        ("https://h/", True, "HTTP/1.1"),
    ],
)
def test_http_version(uri: str, use_http_11: bool, version: str | None) -> None:
    origin, _, _ = request(Endpoint(uri=uri, use_http_11=use_http_11), "c")
    assert origin.http_version == version


def test_request() -> None:
    origin, target, headers = request(_PLAIN, "prod")
    assert (origin.host, origin.port, target) == ("h", 1, "/base/discover?x=1")
    assert headers == [
        (
            b"accept",
            b"application/vnd.restate.endpointmanifest.v1+json, "
            b"application/vnd.restate.endpointmanifest.v2+json, "
            b"application/vnd.restate.endpointmanifest.v3+json, "
            b"application/vnd.restate.endpointmanifest.v4+json",
        ),
        (b"x-restate-cluster-name", b"prod"),
        (b"authorization", b"Bearer t"),
    ]


@pytest.mark.parametrize("content_type", MANIFEST_TYPES)
@pytest.mark.parametrize("status", [200, 201])
def test_a_manifest_is_found(status: int, content_type: str) -> None:
    found = judge(_PLAIN, answer(status, content_type))
    assert isinstance(found, Found)
    assert found.http_version == "HTTP/2.0"
    assert found.discovered.sdk_version == "sdk/1.0"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_statuses_that_may_pass(status: int) -> None:
    verdict = judge(_PLAIN, answer(status))
    assert isinstance(verdict, Again) and isinstance(verdict.error, DiscoveryFailed)
    assert str(status) in verdict.error.message


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 415, 501, 505])
def test_statuses_that_stay(status: int) -> None:
    with pytest.raises(DiscoveryFailed) as caught:
        judge(_PLAIN, answer(status))
    assert caught.value.http_status == 500


@pytest.mark.parametrize(
    ("heard", "error"),
    [
        (answer(content_type=None), BadManifest),
        (answer(content_type="application/json"), BadManifest),
        (answer(content_type=f"{MANIFEST_TYPES[0]}; charset=utf-8"), BadManifest),
        (answer(content_type=MANIFEST_TYPES[0].replace("v1", "v9")), BadManifest),
        (answer(body=b""), BadManifest),
        (answer(body=b"{}"), BadManifest),
        (answer(body=_MANIFEST.replace(b"5", b"8").replace(b"7", b"9")), ProtocolRangeUnsupported),
        (TooLong("too many bytes", True), BadManifest),
        (StreamFailure("broken", "not HTTP/2"), EndpointSpeaksHttp1),
    ],
)
def test_answers_that_stay_wrong(heard: Heard, error: type[PerdureError]) -> None:
    with pytest.raises(error):
        judge(_PLAIN, heard)


@pytest.mark.parametrize(
    ("endpoint", "heard", "hints"),
    [
        (_PLAIN, StreamFailure("connect", "refused"), False),
        (_PLAIN, StreamFailure("refused", "going away"), False),
        (_PLAIN, StreamFailure("lost", "closed"), True),
        (Endpoint(uri="http://h/", use_http_11=True), StreamFailure("lost", "closed"), False),
        (Endpoint(uri="http://h/", use_http_11=True), StreamFailure("broken", "junk"), False),
        (Endpoint(uri="https://h/"), StreamFailure("broken", "junk"), False),
        (_PLAIN, TooLong("too late", False), False),
    ],
)
def test_what_is_tried_again(endpoint: Endpoint, heard: Heard, hints: bool) -> None:
    verdict = judge(endpoint, heard)
    assert isinstance(verdict, Again) and isinstance(verdict.error, DiscoveryFailed)
    assert ("use_http_11" in verdict.error.message) == hints
    assert endpoint.uri in verdict.error.message


def test_schedule() -> None:
    policy = schedule(DISCOVERY_RETRY_INITIAL_MS, DISCOVERY_RETRIES_MAX)
    assert [policy.delay_ms(retry) for retry in range(1, 6)] == [100, 200, 400, 800, None]


def test_headers_are_lowered_and_checked() -> None:
    assert check_headers({"X-A": " b ", "authorization": "t"}) == {"x-a": "b", "authorization": "t"}
    bad = {"": "x", "a b": "x", "a:": "x", "ä": "x", "x": "a\nb", "y": "ä", "TE": "x"}
    for name, value in bad.items():
        with pytest.raises(BadRequest):
            check_headers({name: value})
