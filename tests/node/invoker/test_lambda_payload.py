"""Payloads of AWS Lambda: what is sent, what is understood, what is refused."""

import base64
import json
from typing import Any

import pytest
import zstandard

from perdure.core.limits import FUNCTION_BODY_BYTES_MAX
from perdure.node.invoker.lambda_payload import (
    BadPayload,
    Response,
    decode_response,
    encode_request,
)


def encoded(body: bytes, compresses_from: int | None) -> dict[str, Any]:
    headers = [(b"content-type", b"x/y")]
    found: dict[str, Any] = json.loads(
        encode_request("POST", "/invoke/S/h", headers, body, compresses_from)
    )
    return found


def test_request_is_what_functions_expect() -> None:
    assert encoded(b"\x00\xff", None) == {
        "path": "/invoke/S/h",
        "httpMethod": "POST",
        "headers": {"content-type": "x/y"},
        "body": "AP8=",
        "isBase64Encoded": True,
    }


def test_last_of_headers_with_one_name_counts() -> None:
    payload = encode_request("GET", "/", [(b"a", b"1"), (b"a", b"2")], b"", None)
    assert json.loads(payload)["headers"] == {"a": "2"}
    assert json.loads(payload)["body"] == ""


def test_large_body_is_compressed_for_those_who_take_it() -> None:
    body = b"z" * 1000
    small = encoded(body, 1001)
    assert small["headers"] == {"content-type": "x/y", "accept-encoding": "zstd"}
    assert base64.b64decode(small["body"]) == body
    large = encoded(body, 1000)
    assert large["headers"]["content-encoding"] == "zstd"
    packed = base64.b64decode(large["body"])
    assert len(packed) < 100
    assert zstandard.ZstdDecompressor().decompress(packed) == body
    assert "content-encoding" not in encoded(b"", 0)["headers"]


def test_response_is_understood() -> None:
    plain = decode_response(b'{"statusCode": 404, "headers": null, "body": null}')
    assert plain == Response(404, [], b"")
    text = {"statusCode": 200, "headers": {"X-A": "1"}, "body": "hä", "more": 1}
    assert decode_response(json.dumps(text).encode()) == Response(
        200, [(b"x-a", b"1")], "hä".encode()
    )
    coded = {**text, "body": "AP8=", "isBase64Encoded": True}
    assert decode_response(json.dumps(coded).encode()).body == b"\x00\xff"


def compressed(packed: bytes) -> bytes:
    return json.dumps(
        {
            "statusCode": 200,
            "headers": {"Content-Encoding": "zstd"},
            "body": base64.b64encode(packed).decode(),
            "isBase64Encoded": True,
        }
    ).encode()


def test_compressed_response_is_unpacked() -> None:
    # SDKs compress by stream, so the size isn't in the frame.
    packer = zstandard.ZstdCompressor().compressobj()
    packed = packer.compress(b"z" * 100_000) + packer.flush()
    assert decode_response(compressed(packed)).body == b"z" * 100_000


@pytest.mark.slow
def test_response_that_unpacks_without_end_is_refused() -> None:
    packed = zstandard.ZstdCompressor().compress(bytes(FUNCTION_BODY_BYTES_MAX + 1))
    with pytest.raises(BadPayload, match=r"exceeds"):
        decode_response(compressed(packed))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"{",
        b"\xff",
        b'{"hello": 1}',
        b'{"statusCode": "200"}',
        b'{"statusCode": 200, "body": "***", "isBase64Encoded": true}',
        compressed(b"not zstd"),
    ],
)
def test_what_is_no_response_is_refused(payload: bytes) -> None:
    with pytest.raises(BadPayload):
        decode_response(payload)
