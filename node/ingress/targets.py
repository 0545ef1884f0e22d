"""The bodies of ``/restate/attach``, ``/output`` and ``/lookup``: which invocation is meant. Pure.

Ids derive from keys, so naming a workflow or an idempotent call is as good as giving its id.
"""

import msgspec

from perdure.core.errors import BadRequest
from perdure.core.ids import InvocationId
from perdure.engine.journal import idempotent_invocation_id, workflow_invocation_id
from perdure.node.ingress.paths import parse_id

SCOPES_UNAVAILABLE = "scopes and limit keys are not available on this server: leave them out"


class _ById(msgspec.Struct, tag_field="target", tag="invocation", rename="camel"):
    invocation_id: str


class _ByWorkflow(msgspec.Struct, tag_field="target", tag="workflow", rename="camel"):
    workflow_name: str
    workflow_key: str
    scope: str | None = None


class _ByIdempotencyKey(
    msgspec.Struct, tag_field="target", tag="idempotentInvocation", rename="camel"
):
    service: str
    handler: str
    idempotency_key: str
    key: str | None = None
    scope: str | None = None


_DECODER = msgspec.json.Decoder(_ById | _ByWorkflow | _ByIdempotencyKey)


def parse_target(body: bytes) -> InvocationId:
    """The id of the invocation that a body names; it need not exist.

    Raises:
        BadRequest: the body is not such a document, or asks for a scope.
    """
    try:
        target = _DECODER.decode(body)
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body doesn't name an invocation: {error}") from error
    except UnicodeDecodeError as error:
        raise BadRequest("the body doesn't name an invocation: it is not UTF-8") from error
    except RecursionError as error:
        raise BadRequest("the body doesn't name an invocation: it is nested too deep") from error
    if isinstance(target, _ById):
        return parse_id(target.invocation_id)
    if target.scope:
        raise BadRequest(SCOPES_UNAVAILABLE)
    if isinstance(target, _ByWorkflow):
        return workflow_invocation_id(target.workflow_name, target.workflow_key)
    return idempotent_invocation_id(
        target.service, target.key, target.handler, target.idempotency_key
    )
