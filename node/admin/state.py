"""/services/{service}/state and /perdure/state: an operator's look at, and edit of, state."""

import base64
from typing import Annotated, Any

import msgspec

from perdure.core.attempt_errors import ScopeUnsupported
from perdure.core.errors import BadRequest, ServiceNotFound
from perdure.core.hashing import key_partition_key
from perdure.core.limits import STATE_SHOWN_BYTES_MAX
from perdure.engine.commands import PatchState
from perdure.engine.objects import state_entries, state_version
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.requests import Reply, Request, empty_reply, json_reply
from perdure.node.admin.routes import Route
from perdure.node.registry.model import ServiceType
from perdure.storage.keys import object_group
from perdure.storage.tables.objects import StateEntry

_Octet = Annotated[int, msgspec.Meta(ge=0, le=255)]


class StateEdit(msgspec.Struct):
    """All state to be there: values as octets, or text. `version`: only if it has that one."""

    object_key: str
    new_state: dict[str, list[_Octet] | str]
    version: str | None = None
    scope: str | None = None


async def edit_state(context: Context, request: Request) -> Reply:
    """Replace all state of a key: logged when this answers, applied in the object's turn.

    A state that is no longer at ``version`` is left alone, which the answer can't tell.
    """
    name = request.parameters["service"]
    body = request.json(StateEdit)
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


async def show_state(context: Context, request: Request) -> Reply:
    """All state of a key at one moment, with the version that an edit may name.

    An object that was never touched has none: like one whose service is gone, it isn't an error.
    """
    service, key = request.parameters["service"], request.parameters["key"]
    store = context.gateway.store(key_partition_key(key))
    entries = state_entries(store, object_group(service, key))
    document: dict[str, Any] = {"service": service, "key": key}
    left = STATE_SHOWN_BYTES_MAX
    shown: dict[bytes, dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: len(entry.value)):
        shown[entry.key] = _entry_shape(entry, len(entry.value) <= left)
        left -= len(entry.value)
    document["entries"] = [shown[entry.key] for entry in entries]
    document["version"] = state_version([(entry.key, entry.value) for entry in entries])
    document["is_partial"] = left < 0
    return json_reply(200, document)


def _entry_shape(entry: StateEntry, has_value: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": entry.key.decode(errors="backslashreplace"),
        "size": len(entry.value),
    }
    if has_value:
        try:
            document["value"] = entry.value.decode()
        except UnicodeDecodeError:
            document["value_base64"] = base64.b64encode(entry.value).decode()
    return document


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/perdure/state/{service}/{key}", show_state),
    Route("POST", "/services/{service}/state", edit_state, StateEdit),
]
