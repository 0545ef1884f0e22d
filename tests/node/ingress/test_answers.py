"""Answers as values: statuses, headers, bodies."""

import json

import pytest

from perdure.core.errors import NotReady
from perdure.core.ids import PartitionId
from perdure.node.ingress import answers
from perdure.node.ingress.answers import Answer
from perdure.storage.tables.invocations import Failure

ID = "inv_1abc"


def header(answer: Answer, name: bytes) -> bytes | None:
    return next((value for known, value in answer.headers if known == name), None)


def test_output() -> None:
    assert answers.output("a/b", ID, 0, b"1") == Answer(
        200, [(b"x-restate-id", b"inv_1abc"), (b"content-type", b"a/b")], b"1"
    )
    assert header(answers.output(None, ID, 0, b""), b"content-type") is None
    assert header(answers.output("a/b; q=\r\nx", ID, 0, b""), b"content-type") is None


def test_stored_output_says_when_it_goes() -> None:
    stored = answers.output("a/b", ID, 1_795_339_962_244, b"1")
    assert header(stored, b"idempotency-expires") == b"2026-11-22T09:32:42.244+00:00"
    stored = answers.output("a/b", ID, 1 << 70, b"1")
    assert header(stored, b"idempotency-expires") == b"9999-12-31T23:59:59.999+00:00"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((code, code) for code in (200, 404, 418, 599)),
        *((code, 500) for code in (0, 99, 101, 204, 205, 304, 500, 600, 999, 1000, 65535)),
    ],
)
def test_failure_code_is_the_status_where_http_has_it(code: int, status: int) -> None:
    answer = answers.failure(Failure(code, "no"), ID, 0)
    assert answer.status == status
    assert json.loads(answer.body) == {"code": code, "message": "no", "source": "invocation"}
    assert header(answer, b"x-restate-error-source") == b"invocation"
    assert header(answer, b"content-type") == b"application/json"
    assert header(answer, b"x-restate-id") == ID.encode()


def test_failure_with_all_it_can_have() -> None:
    failure = Failure(500, "no", (("k", "v"),), "at line 1")
    assert json.loads(answers.failure(failure, ID, 0).body) == {
        "code": 500,
        "message": "no",
        "source": "invocation",
        "stacktrace": "at line 1",
        "metadata": {"k": "v"},
    }


def test_refusal() -> None:
    answer = answers.refusal(NotReady("not yet"))
    assert answer.status == 470
    assert json.loads(answer.body) == {
        "code": 470,
        "message": "not yet",
        "source": "ingress",
        "restate_code": "REQ0007",
    }
    assert header(answer, b"x-restate-error-source") == b"ingress"
    assert header(answer, b"x-restate-id") is None
    assert header(answers.refusal(NotReady("not yet"), ID), b"x-restate-id") == ID.encode()


def test_sent() -> None:
    answer = answers.sent(ID, 0, True)
    assert answer.status == 202
    assert json.loads(answer.body) == {"invocationId": ID, "status": "Accepted"}
    answer = answers.sent(ID, 1_795_339_962_004, False)
    assert json.loads(answer.body) == {
        "invocationId": ID,
        "executionTime": "2026-11-22T09:32:42.004000000Z",
        "status": "PreviouslyAccepted",
    }


def test_small_ones() -> None:
    assert json.loads(answers.health(["b", "a"], []).body) == {"services": ["a", "b"]}
    halted = json.loads(answers.health([], [PartitionId(2)]).body)
    assert halted == {"services": [], "halted_partitions": [2]}
    assert json.loads(answers.found(ID).body) == {"invocationId": ID}
    assert answers.accepted() == Answer(202, [])


def test_preflight_mirrors() -> None:
    asked = [
        (b"access-control-request-headers", b"x-a, x-b"),
        (b"access-control-request-method", b"PUT"),
        (b"access-control-request-method", b"GET"),
    ]
    assert answers.preflight(asked) == Answer(
        200,
        [
            (b"access-control-allow-methods", b"PUT"),
            (b"access-control-allow-headers", b"x-a, x-b"),
        ],
    )
    assert answers.preflight([]) == Answer(200, [])
    assert answers.preflight([(b"access-control-request-method", b"\xff")]) == Answer(200, [])


def test_cors_headers() -> None:
    plain = dict(answers.shared_with(None))
    assert plain == {
        b"vary": b"origin, access-control-request-method, access-control-request-headers",
        b"access-control-allow-credentials": b"true",
    }
    shared = dict(answers.shared_with(b"http://a"))
    assert shared == {**plain, b"access-control-allow-origin": b"http://a"}
    assert dict(answers.shared_with(b"a\r\nb")) == plain
