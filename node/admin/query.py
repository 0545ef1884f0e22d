"""POST /query: SQL over the node's tables (docs/sql.md).

The answer is JSON if the client accepts exactly ``application/json``, else an Arrow stream: what
known clients do and expect.
"""

import msgspec

from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.requests import Reply, Request
from perdure.node.admin.routes import Route


class Statement(msgspec.Struct):
    """One SQL statement that reads."""

    query: str


async def query(context: Context, request: Request) -> Reply:
    """Run a statement."""
    statement = request.json(Statement).query
    answer = await context.query.answer(statement, request.accept == "application/json")
    return Reply(200, [(b"content-type", answer.media_type.encode())], answer.first, answer.rest)


ROUTES: list[Route[Endpoint]] = [Route("POST", "/query", query, Statement)]
