"""The services that admin tests register: handlers that end, wait, fail, or hang."""

import asyncio
from datetime import timedelta

import restate

probe = restate.Service("Probe", description="what tests need", metadata={"team": "core"})
keyed = restate.VirtualObject("Keyed")
flow = restate.Workflow("Flow")


@probe.handler()
async def echo(ctx: restate.Context, text: str) -> str:
    return text


@probe.handler()
async def step(ctx: restate.Context, text: str) -> str:
    await ctx.run("first", lambda: text)
    await ctx.sleep(timedelta(milliseconds=1))
    return text


@probe.handler(inactivity_timeout=timedelta(0))
async def nap(ctx: restate.Context, seconds: int) -> None:
    await ctx.sleep(timedelta(seconds=seconds))


@probe.handler()
async def hang(ctx: restate.Context) -> None:
    await asyncio.sleep(3600)


@probe.handler(
    invocation_retry_policy=restate.InvocationRetryPolicy(
        initial_interval=timedelta(hours=1), max_interval=timedelta(hours=1)
    )
)
async def trip(ctx: restate.Context) -> None:
    raise ValueError("tripped")


@probe.handler()
async def refuse(ctx: restate.Context) -> None:
    raise restate.TerminalError("never", status_code=418)


@keyed.handler()
async def hold(ctx: restate.ObjectContext) -> None:
    await asyncio.sleep(3600)


@keyed.handler()
async def put(ctx: restate.ObjectContext, value: str) -> None:
    ctx.set("value", value)


@keyed.handler(kind="shared")
async def peek(ctx: restate.ObjectSharedContext) -> str | None:
    return await ctx.get("value", type_hint=str)


@flow.main()
async def run(ctx: restate.WorkflowContext) -> str:
    return "done"


APP = restate.app([probe, keyed, flow])
