"""Services for the command's tests: ``python -m tests.node.cli.shop``; says its port on stdout."""

import asyncio
import socket
from datetime import timedelta
from typing import Any, cast

import restate
from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework

greeter = restate.Service(
    "Greeter",
    metadata={"team": "front desk"},
    invocation_retry_policy=restate.InvocationRetryPolicy(
        initial_interval=timedelta(milliseconds=10), max_attempts=2, on_max_attempts="pause"
    ),
)
till = restate.VirtualObject("Till")


@greeter.handler("greet")
async def greet(ctx: restate.Context, name: str) -> str:
    return await ctx.run_typed("compose", lambda: f"Hello {name}")


@greeter.handler("wait")
async def wait(ctx: restate.Context) -> str:
    _, promise = ctx.awakeable(type_hint=str)
    return await promise


@greeter.handler("sell")
async def sell(ctx: restate.Context, name: str) -> int:
    await ctx.sleep(timedelta(milliseconds=300), name="think")
    return await ctx.object_call(add, name, 1)


@greeter.handler("refuse")
async def refuse(ctx: restate.Context) -> None:
    raise restate.TerminalError("out of stock", status_code=409)


@greeter.handler("stumble")
async def stumble(ctx: restate.Context) -> None:
    raise ValueError("out of order")


@till.handler("add", kind="exclusive")
async def add(ctx: restate.ObjectContext, amount: int) -> int:
    total = (await ctx.get("total", type_hint=int) or 0) + amount
    ctx.set("total", total)
    return total


@till.handler("fill", kind="exclusive")
async def fill(ctx: restate.ObjectContext, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        ctx.set(name, "x" * size)


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = Config()
        config.bind = [f"fd://{listener.fileno()}"]
        print(listener.getsockname()[1], flush=True)
        app: Any = restate.app([greeter, till])
        await serve(cast(ASGIFramework, app), config)


if __name__ == "__main__":
    asyncio.run(main())
