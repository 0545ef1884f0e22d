"""Virtual objects: state in every form, eager and lazy, and the order of a hot key."""

from typing import Any

from restate import ObjectContext, ObjectSharedContext, TerminalError, VirtualObject
from restate.serde import BytesSerde
from tests.conformance.ledger import Ledger
from tests.conformance.python.basics import QUICK_RETRIES


def services(prefix: str, ledger: Ledger) -> list[Any]:
    eager = _store(VirtualObject(f"{prefix}Store", invocation_retry_policy=QUICK_RETRIES), ledger)
    lazy = _store(
        VirtualObject(
            f"{prefix}LazyStore", enable_lazy_state=True, invocation_retry_policy=QUICK_RETRIES
        ),
        ledger,
    )
    return [eager, lazy, _queue(prefix, ledger)]


def _store(store: VirtualObject, ledger: Ledger) -> VirtualObject:
    @store.handler()
    async def add(ctx: ObjectContext, amount: int) -> int:
        total = (await ctx.get("total", type_hint=int) or 0) + amount
        ctx.set("total", total)
        return total

    @store.handler(kind="shared")
    async def total(ctx: ObjectSharedContext) -> int:
        return await ctx.get("total", type_hint=int) or 0

    @store.handler()
    async def write(ctx: ObjectContext, entries: dict[str, Any]) -> None:
        for name, value in entries.items():
            ctx.set(name, value)

    @store.handler(kind="shared")
    async def read(ctx: ObjectSharedContext, name: str) -> Any:
        return await ctx.get(name)

    @store.handler(kind="shared")
    async def names(ctx: ObjectSharedContext) -> list[str]:
        return await ctx.state_keys()

    @store.handler()
    async def clear(ctx: ObjectContext, name: str) -> None:
        ctx.clear(name)

    @store.handler()
    async def clear_all(ctx: ObjectContext) -> None:
        ctx.clear_all()

    _within_one(store, ledger)
    return store


def _within_one(store: VirtualObject, ledger: Ledger) -> None:
    @store.handler()
    async def everything(ctx: ObjectContext, key: str) -> list[Any]:
        """All state operations in one invocation, seen again by a second attempt."""
        seen: list[Any] = [await ctx.get("a"), sorted(await ctx.state_keys())]
        ctx.set("a", 1)
        ctx.set("b", "two")
        seen += [await ctx.get("a"), sorted(await ctx.state_keys())]
        ctx.clear("a")
        seen += [await ctx.get("a"), await ctx.get("b")]
        ctx.clear_all()
        seen += [await ctx.get("b"), await ctx.state_keys()]
        ctx.set("c", [3])
        if ledger.add(key) == 1:
            raise ValueError("the first attempt fails at its end")
        return seen

    @store.handler()
    async def write_empty(ctx: ObjectContext) -> None:
        ctx.set("empty", b"", BytesSerde())

    @store.handler(kind="shared")
    async def read_length(ctx: ObjectSharedContext, name: str) -> int:
        value = await ctx.get(name, BytesSerde())
        return -1 if value is None else len(value)

    @store.handler()
    async def write_then_fail(ctx: ObjectContext, amount: int) -> None:
        ctx.set("total", amount)
        raise TerminalError("after the write", 418)


def _queue(prefix: str, ledger: Ledger) -> VirtualObject:
    queue = VirtualObject(f"{prefix}Queue", invocation_retry_policy=QUICK_RETRIES)

    @queue.handler()
    async def pass_through(ctx: ObjectContext, label: str) -> int:
        """Enters and leaves the ledger; overlapping invocations would show there."""
        ledger.add(f"queue {ctx.key()}", f"enter {label}")
        passed = (await ctx.get("passed", type_hint=int) or 0) + 1
        ctx.set("passed", passed)
        await ctx.run_typed("leave", lambda: ledger.add(f"queue {ctx.key()}", f"leave {label}"))
        return passed

    @queue.handler()
    async def hold(ctx: ObjectContext, key: str) -> str:
        """Keeps the key locked until its awakeable is resolved."""
        name, promise = ctx.awakeable(type_hint=str)
        ledger.add(key, name)
        return await promise

    @queue.handler(kind="shared")
    async def passed(ctx: ObjectSharedContext) -> int:
        return await ctx.get("passed", type_hint=int) or 0

    return queue
