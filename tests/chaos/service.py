"""The services of a chaos run: the interpreter of random programs, and numbers.

Run as ``python -m tests.chaos.service --port N --ledger PATH`` in a container of its own. A
``Number`` is a register and a counter at once; ``linearizability.py`` says once more, without the
SDK, what its operations mean.
"""

from typing import Any

import restate
from tests.process.interpreter import POLICY, cell, flow, runner, serve_with

number = restate.VirtualObject("Number", invocation_retry_policy=POLICY)


@number.handler("read", kind="shared")
async def read(ctx: restate.ObjectSharedContext, request: dict[str, Any]) -> int:
    return await ctx.get("value", type_hint=int) or 0


@number.handler("write", kind="exclusive")
async def write(ctx: restate.ObjectContext, request: dict[str, Any]) -> int:
    before = await ctx.get("value", type_hint=int) or 0
    ctx.set("value", request["value"])
    return before


@number.handler("swap", kind="exclusive")
async def swap(ctx: restate.ObjectContext, request: dict[str, Any]) -> int:
    if (await ctx.get("value", type_hint=int) or 0) != request["expected"]:
        return 0
    ctx.set("value", request["value"])
    return 1


@number.handler("add", kind="exclusive")
async def add(ctx: restate.ObjectContext, request: dict[str, Any]) -> int:
    total = (await ctx.get("value", type_hint=int) or 0) + int(request["amount"])
    # A step in between: the sum is of a state that was read before it was recorded.
    await ctx.run_typed("think", lambda: total)
    ctx.set("value", total)
    return total


if __name__ == "__main__":
    serve_with([runner, cell, flow, number], "0.0.0.0", requests_per_connection=1_000_000)
