"""Bodies that name an invocation."""

import json

import pytest

from perdure.core.errors import BadRequest
from perdure.core.ids import InvocationId, format_invocation_id, make_invocation_id
from perdure.engine.journal import idempotent_invocation_id, workflow_invocation_id
from perdure.node.ingress.targets import parse_target

ID = make_invocation_id(7, 9)
CALL = {"target": "idempotentInvocation", "service": "S", "handler": "h", "idempotencyKey": "i"}
FLOW = {"target": "workflow", "workflowName": "W", "workflowKey": "k"}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"target": "invocation", "invocationId": format_invocation_id(ID)}, ID),
        ({**FLOW, "unknown": [1]}, workflow_invocation_id("W", "k")),
        ({**FLOW, "scope": None}, workflow_invocation_id("W", "k")),
        ({**FLOW, "scope": ""}, workflow_invocation_id("W", "k")),
        (CALL, idempotent_invocation_id("S", None, "h", "i")),
        ({**CALL, "key": None}, idempotent_invocation_id("S", None, "h", "i")),
        ({**CALL, "key": ""}, idempotent_invocation_id("S", "", "h", "i")),
        ({**CALL, "key": "k"}, idempotent_invocation_id("S", "k", "h", "i")),
    ],
)
def test_read(document: dict[str, object], expected: InvocationId) -> None:
    assert parse_target(json.dumps(document).encode()) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"target": "invocation", "x": ' + b"[" * 100_000,
        b"[]",
        b"{}",
        b'"\xff"',
        b'{"target":"nothing"}',
        b'{"target":"invocation"}',
        b'{"target":"invocation","invocationId":"inv_1x"}',
        b'{"target":"workflow","workflowName":"W"}',
        json.dumps({**FLOW, "scope": "s"}).encode(),
        json.dumps({**CALL, "scope": "s"}).encode(),
    ],
)
def test_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_target(body)
