"""The smallest service: ``python -m examples.python.greeter``, then register http://localhost:9080."""

from datetime import timedelta

import restate
from examples.python.serving import serve

greeter = restate.Service("Greeter")


@greeter.handler()
async def greet(ctx: restate.Context, name: str) -> str:
    # Recorded: it runs once, whatever crashes around it.
    greeting = await ctx.run_typed("compose", lambda: f"Hello, {name}")
    # Durable: it survives restarts of the service and of the server.
    await ctx.sleep(timedelta(milliseconds=500))
    return f"{greeting}!"


if __name__ == "__main__":
    serve([greeter])
