"""/services/{service}/state: an operator's replacement of an object's state."""

from typing import Annotated

import msgspec

from perdure.core.errors import BadRequest, ScopeUnsupported, ServiceNotFound
from perdure.core.hashing import key_partition_key
from perdure.engine.commands import PatchState
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.requests import Reply, Request, empty_reply
from perdure.node.admin.routes import Route
from perdure.node.registry.model import ServiceType

_Octet = Annotated[int, msgspec.Meta(ge=0, le=255)]


class _StateEdit(msgspec.Struct):
    object_key: str
    new_state: dict[str, list[_Octet] | str]
    version: str | None = None
    scope: str | None = None


async def edit_state(context: Context, request: Request) -> Reply:
    """Replace all state of a key: logged when this answers, applied in the object's turn.

    A state that is no longer at ``version`` is left alone, which the answer can't tell.
    """
    name = request.parameters["service"]
    body = request.json(_StateEdit)
    service = context.registry.registry.service(name)
    # The state of a service that is gone may still be cleared.
    if service is None and body.new_state:
        raise ServiceNotFound(f"there is no service {name!r}")
    if service is not None and not service.type.is_keyed:
        raise BadRequest(f"{name!r} is a plain service: it has no state")
    if body.scope is not None:
        raise BadRequest(f"scope: {ScopeUnsupported.title}")
    entries = tuple(
        (key.encode(), value.encode() if isinstance(value, str) else bytes(value))
        for key, value in sorted(body.new_state.items())
    )
    is_locked_by_handlers = service is None or service.type is not ServiceType.WORKFLOW
    command = PatchState(name, body.object_key, is_locked_by_handlers, body.version, entries)
    await context.propose(command, key_partition_key(body.object_key))
    return empty_reply(202)


ROUTES: list[Route[Endpoint]] = [
    Route("POST", "/services/{service}/state", edit_state),
]
