"""Durable steps: recorded once, retried, given up, replayed by the thousand, and changed."""

import random
from datetime import timedelta
from typing import Any

from restate import Context, RunOptions, Service, TerminalError, gather
from tests.conformance.ledger import Ledger
from tests.conformance.python.basics import QUICK_RETRIES

_TICK = timedelta(milliseconds=10)


def services(prefix: str, ledger: Ledger, version: str) -> list[Any]:
    runs = Service(f"{prefix}Runs", invocation_retry_policy=QUICK_RETRIES)
    _single_steps(runs, ledger)
    _many_steps(runs, ledger)
    _determinism(runs, ledger)
    return [runs, _versioned(prefix, ledger, version)]


def _single_steps(runs: Service, ledger: Ledger) -> None:
    @runs.handler()
    async def once(ctx: Context, arg: dict[str, Any]) -> str:
        def step() -> str:
            ledger.add(arg["key"])
            return str(arg["value"])

        return await ctx.run_typed("once", step)

    @runs.handler()
    async def retried(ctx: Context, arg: dict[str, Any]) -> int:
        def step() -> int:
            attempt = ledger.add(arg["key"])
            if attempt <= arg["times"]:
                raise ValueError(f"attempt {attempt} fails")
            return attempt

        return await ctx.run_typed("retried", step, RunOptions(initial_retry_interval=_TICK))

    @runs.handler()
    async def terminal(ctx: Context, arg: dict[str, Any]) -> dict[str, Any]:
        def step() -> str:
            ledger.add(arg["key"])
            raise TerminalError(arg["message"], arg["code"])

        try:
            return {"value": await ctx.run_typed("terminal", step)}
        except TerminalError as error:
            return {"code": error.status_code, "message": error.message}

    @runs.handler()
    async def exhausted(ctx: Context, arg: dict[str, Any]) -> dict[str, Any]:
        def step() -> str:
            attempt = ledger.add(arg["key"])
            raise ValueError(f"attempt {attempt} fails")

        options = RunOptions[str](
            max_attempts=arg["max_attempts"], initial_retry_interval=_TICK, retry_interval_factor=1
        )
        try:
            return {"value": await ctx.run_typed("exhausted", step, options)}
        except TerminalError as error:
            return {"code": error.status_code, "attempts": ledger.count(arg["key"])}


def _many_steps(runs: Service, ledger: Ledger) -> None:
    @runs.handler()
    async def steps(ctx: Context, arg: dict[str, Any]) -> int:
        """``count`` steps of ``size`` characters, a failure, and the size of what was replayed."""
        key = arg["key"]

        def step(index: int) -> str:
            ledger.add(f"{key} step", str(index))
            return f"{index:06d}".ljust(arg["size"], "x")

        total = 0
        for index in range(arg["count"]):
            total += len(await ctx.run_typed(f"step {index}", step, index=index))
        if ledger.add(f"{key} attempt") == 1:
            raise ValueError("the first attempt fails after its last step")
        return total

    @runs.handler()
    async def parallel(ctx: Context, arg: dict[str, Any]) -> list[int]:
        def step(index: int) -> int:
            ledger.add(arg["key"], str(index))
            return index * index

        running = [ctx.run_typed(f"step {i}", step, index=i) for i in range(arg["count"])]
        await gather(*running)
        return [await each for each in running]

    @runs.handler()
    async def changing(ctx: Context, key: str) -> str:
        """The second attempt does something else than the journal says."""
        attempt = ledger.add(key)
        if attempt == 2:
            await ctx.sleep(_TICK)
        value = await ctx.run_typed("recorded", lambda: f"attempt {attempt}")
        if attempt == 1:
            raise ValueError("the first attempt fails after its step")
        return value


def _determinism(runs: Service, ledger: Ledger) -> None:
    @runs.handler(inactivity_timeout=timedelta(milliseconds=50))
    async def chance(ctx: Context, key: str) -> str:
        drawn = f"{ctx.uuid()} {ctx.random().random()} {await ctx.time()}"
        attempt = ledger.add(key, drawn)
        if attempt == 1:
            raise ValueError("the first attempt fails after the dice")
        await ctx.sleep(timedelta(milliseconds=300))
        return drawn

    @runs.handler()
    async def recorded_chance(ctx: Context, key: str) -> float:
        value = await ctx.run_typed("dice", random.random)
        ledger.add(key, str(value))
        await ctx.run_typed("more", lambda: ledger.add(f"{key} more"))
        if ledger.count(key) == 1:
            raise ValueError("the first attempt fails after the dice")
        return value


def _versioned(prefix: str, ledger: Ledger, version: str) -> Service:
    versioned = Service(
        f"{prefix}Versioned",
        inactivity_timeout=timedelta(milliseconds=50),
        invocation_retry_policy=QUICK_RETRIES,
    )

    @versioned.handler()
    async def pinned(ctx: Context, key: str) -> list[str]:
        first = await ctx.run_typed("version", lambda: version)
        name, promise = ctx.awakeable(type_hint=str)
        ledger.add(key, name)
        await promise
        return [first, version]

    return versioned
