"""The service that both servers call, on hypercorn: ``python -m bench.service PORT``."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import timedelta
from time import perf_counter
from typing import Any

import restate
from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config

bench = restate.Service("Bench")
_arrived: ContextVar[float] = ContextVar("arrived")
_failed_once: set[str] = set()


class LetMeTryAgain(Exception):
    """Ends the first attempt, so that the second one replays its journal."""


def _same(number: int) -> int:
    return number


@bench.handler()
async def steps(ctx: restate.Context, count: int) -> int:
    """As many durable steps as asked for, one after the other."""
    for number in range(count):
        await ctx.run_typed("step", _same, number=number)
    return count


@bench.handler(inactivity_timeout=timedelta(milliseconds=100))
async def sleep(ctx: restate.Context, days: int) -> None:
    """Suspended until long after the measurement."""
    await ctx.sleep(timedelta(days=days))


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


_sdk = restate.app([bench])


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
