"""The cluster's metadata for operators: how it is kept, its registers, a copy. Read-only."""

import base64

from perdure.core.errors import MetadataUnavailable
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.log_rows import register_row, store_row
from perdure.node.admin.requests import Reply, Request, json_reply
from perdure.node.admin.routes import Route
from perdure.node.register_desk import RegisterDesk


async def get_status(context: Context, request: Request) -> Reply:
    """How the metadata is kept, and how its places are; the answer is 200 also when it is not
    well."""
    found = await _desk(context).standing()
    return json_reply(200, store_row(found, context.cluster.backend))


async def list_registers(context: Context, request: Request) -> Reply:
    """Registers by key, ``prefix`` narrows it down."""
    found = await _desk(context).registers(request.query.get("prefix", ""))
    return json_reply(200, {"registers": [register_row(each) for each in found]})


async def get_register(context: Context, request: Request) -> Reply:
    """One register; the slashes of its key are percent-encoded."""
    found = await _desk(context).get(request.parameters["register"])
    return json_reply(200, register_row(found))


async def backup(context: Context, request: Request) -> Reply:
    """A copy of all registers as of one moment: the file in base64."""
    content = await _desk(context).backup()
    seen = context.cluster.standing()
    return json_reply(
        200,
        {
            "cluster": seen.cluster.name,
            "fingerprint": seen.cluster.fingerprint,
            "content": base64.b64encode(content).decode(),
        },
    )


def _desk(context: Context) -> RegisterDesk:
    if context.cluster.registers is None:
        raise MetadataUnavailable("this node has no metadata open")
    return context.cluster.registers


ROUTES: list[Route[Endpoint]] = [
    Route("GET", "/perdure/metadata", get_status),
    Route("GET", "/perdure/metadata/registers", list_registers),
    Route("GET", "/perdure/metadata/registers/{register}", get_register),
    Route("GET", "/perdure/metadata/backup", backup),
]
