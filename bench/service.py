"""The service that both servers call, on hypercorn: ``python -m bench.service PORT``."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import timedelta
from time import perf_counter
from typing import Any

import restate
from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config

from bench.apps.wakes import Wakes

bench = restate.Service("Bench")
counter = restate.VirtualObject("Counter")
_arrived: ContextVar[float] = ContextVar("arrived")
_failed_once: set[str] = set()
_wakes = Wakes()


class LetMeTryAgain(Exception):
    """Ends the first attempt, so that the second one replays its journal."""


def _same(number: int) -> int:
    return number


def _same_text(text: str) -> str:
    return text


@bench.handler()
async def steps(ctx: restate.Context, count: int) -> int:
    """As many durable steps as asked for, one after the other."""
    for number in range(count):
        await ctx.run_typed("step", _same, number=number)
    return count


@bench.handler()
async def echo(ctx: restate.Context, payload: str) -> str:
    """The payload through one durable step and back."""
    return await ctx.run_typed("step", _same_text, text=payload)


@bench.handler()
async def fan(ctx: restate.Context, count: int) -> int:
    """As many calls as asked for, begun together and awaited together."""
    calls = [ctx.service_call(steps, arg=0) for _ in range(count)]
    for call in calls:
        await call
    return count


@bench.handler(inactivity_timeout=timedelta(milliseconds=100))
async def hold(ctx: restate.Context, wake_ms: int) -> None:
    """Suspended until a point in time, the same for the whole crowd."""
    await ctx.sleep(timedelta(milliseconds=max(0, wake_ms - time.time() * 1e3)))
    _wakes.note(ctx.request().id, wake_ms)


@bench.handler()
async def woken(ctx: restate.Context, is_reset: bool) -> dict[str, float]:
    """What is known of the crowd; then, if asked, forget it."""
    return _wakes.report(is_reset)


@bench.handler()
async def replay(ctx: restate.Context, count: int) -> float:
    """Seconds from the arrival of the second attempt until it has replayed ``count`` steps."""
    for number in range(count):
        await ctx.run_typed("step", _same, number=number)
    key = ctx.request().id
    if key not in _failed_once:
        _failed_once.add(key)
        raise LetMeTryAgain
    return perf_counter() - _arrived.get()


@counter.handler()
async def add(ctx: restate.ObjectContext, amount: int) -> int:
    """A get and a set."""
    total = (await ctx.get("total", type_hint=int) or 0) + amount
    ctx.set("total", total)
    return total


_sdk = restate.app([bench, counter])


async def app(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """The SDK's application, with a note of when each attempt arrived."""
    _arrived.set(perf_counter())
    await _sdk(scope, receive, send)


def main() -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.keep_alive_max_requests = sys.maxsize  # both servers would only pay for reconnecting
    config.loglevel = "ERROR"
    asyncio.run(serve(app, config))


if __name__ == "__main__":
    main()
