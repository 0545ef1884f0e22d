"""Waiting: sleeps, awakeables, signals, races. A short inactivity timeout makes them suspend."""

from datetime import timedelta
from typing import Any

from restate import Context, Service, TerminalError, gather, select
from restate.serde import JsonSerde
from tests.conformance.ledger import Ledger
from tests.conformance.python.basics import QUICK_RETRIES


def services(prefix: str, ledger: Ledger) -> list[Any]:
    patient = Service(f"{prefix}Waiting", invocation_retry_policy=QUICK_RETRIES)
    impatient = Service(
        f"{prefix}Suspending",
        inactivity_timeout=timedelta(milliseconds=50),
        invocation_retry_policy=QUICK_RETRIES,
    )
    for service in (patient, impatient):
        _sleeps(service, ledger)
        _awakeables(service, ledger)
        _signals(service, ledger)
    return [patient, impatient]


def _sleeps(service: Service, ledger: Ledger) -> None:
    @service.handler()
    async def sleep(ctx: Context, arg: dict[str, Any]) -> str:
        ledger.add(arg["key"])
        await ctx.sleep(timedelta(milliseconds=arg["ms"]))
        return "slept"

    @service.handler()
    async def race(ctx: Context, arg: dict[str, Any]) -> str:
        name, promise = ctx.awakeable(type_hint=str)
        ledger.add(arg["key"], name)
        timeout = ctx.sleep(timedelta(milliseconds=arg["ms"]))
        match await select(value=promise, timeout=timeout):
            case ["value", value]:
                return str(value)
            case _:
                return "timeout"

    @service.handler()
    async def two(ctx: Context, key: str) -> list[str]:
        first_name, first = ctx.awakeable(type_hint=str)
        second_name, second = ctx.awakeable(type_hint=str)
        ledger.add(key, f"{first_name} {second_name}")
        await gather(first, second)
        return [await first, await second]


def _awakeables(service: Service, ledger: Ledger) -> None:
    @service.handler()
    async def awakeable(ctx: Context, key: str) -> dict[str, Any]:
        name, promise = ctx.awakeable(JsonSerde[Any]())
        ledger.add(key, name)
        try:
            return {"value": await promise}
        except TerminalError as error:
            return {"code": error.status_code, "message": error.message}

    @service.handler()
    async def resolve(ctx: Context, arg: dict[str, Any]) -> None:
        ctx.resolve_awakeable(arg["id"], arg["value"])

    @service.handler()
    async def reject(ctx: Context, arg: dict[str, Any]) -> None:
        ctx.reject_awakeable(arg["id"], arg["reason"])


def _signals(service: Service, ledger: Ledger) -> None:
    @service.handler()
    async def signal(ctx: Context, arg: dict[str, Any]) -> list[Any]:
        """Awaits the same signal ``times`` times."""
        ledger.add(arg["key"], ctx.request().id)
        seen: list[Any] = []
        for _ in range(arg["times"]):
            try:
                seen.append(await ctx.signal(arg["name"]))
            except TerminalError as error:
                seen.append(f"{error.status_code} {error.message}")
        return seen

    @service.handler()
    async def resolve_signal(ctx: Context, arg: dict[str, Any]) -> None:
        ctx.resolve_signal(arg["id"], arg["name"], arg["value"])

    @service.handler()
    async def reject_signal(ctx: Context, arg: dict[str, Any]) -> None:
        ctx.reject_signal(arg["id"], arg["name"], arg["reason"])
