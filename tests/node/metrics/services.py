"""Services of the official SDK for tests of metrics and traces: their attempts end in every way."""

from datetime import timedelta

import restate

QUICK = restate.InvocationRetryPolicy(
    initial_interval=timedelta(milliseconds=10), max_attempts=2, on_max_attempts="kill"
)

probe = restate.Service("Probe")
_failed_once: set[str] = set()


@probe.handler()
async def hello(ctx: restate.Context, name: str) -> str:
    return f"hello {name}"


@probe.handler(inactivity_timeout=timedelta(0))
async def nap(ctx: restate.Context) -> str:
    await ctx.sleep(timedelta(milliseconds=20))
    return "awake"


@probe.handler(invocation_retry_policy=QUICK)
async def stumble(ctx: restate.Context, name: str) -> str:
    """Fails at the first attempt."""
    if name not in _failed_once:
        _failed_once.add(name)
        raise ValueError("stumbled")
    return "up again"


@probe.handler(invocation_retry_policy=QUICK)
async def fall(ctx: restate.Context) -> None:
    raise ValueError("never works")


@probe.handler()
async def refuse(ctx: restate.Context) -> None:
    raise restate.TerminalError("never", status_code=418)


@probe.handler()
async def attempt_headers(ctx: restate.Context) -> dict[str, str]:
    """Headers of this attempt's request that name a trace."""
    found = ctx.request().attempt_headers
    return {name: found[name] for name in ("traceparent", "tracestate") if name in found}


@probe.handler()
async def steps(ctx: restate.Context, name: str) -> str:
    """Two recorded steps, then a call."""
    first = await ctx.run_typed("first", lambda: name)
    second = await ctx.run_typed("second", lambda: first + "!")
    return await ctx.service_call(hello, arg=second)


@probe.handler()
async def broken_step(ctx: restate.Context) -> None:
    def refuse_step() -> None:
        raise restate.TerminalError("out of stock", status_code=409)

    await ctx.run_typed("reserve", refuse_step)


@probe.handler(inactivity_timeout=timedelta(0))
async def await_word(ctx: restate.Context) -> str:
    """Suspends until somebody completes the awakeable."""
    _, word = ctx.awakeable(type_hint=str)
    return await word


APP = restate.app([probe])
