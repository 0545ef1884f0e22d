"""A checkout that survives crashes: ``python -m examples.python.checkout``.

Every step that touches the world also writes a line to ``steps.log`` (or ``STEPS_FILE``). That file
is the service's own count of what it did: a step that ran twice would be there twice.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import TypedDict

import restate
from examples.python.serving import serve
from restate import ObjectContext, TerminalError, WorkflowContext, WorkflowSharedContext

STEPS_FILE = Path(os.environ.get("STEPS_FILE", "steps.log"))


class Order(TypedDict):
    """What is bought, and how long the bank takes."""

    item: str
    count: int
    clearing_ms: int


class Receipt(TypedDict):
    payment: str
    parcel: str
    stock_left: int
    confirmed: str


def note(line: str) -> None:
    """One line in the file of steps."""
    with STEPS_FILE.open("a") as file:
        file.write(f"{line}\n")


stock = restate.VirtualObject("Stock")
checkout = restate.Workflow("Checkout")


@stock.handler()
async def refill(ctx: ObjectContext, count: int) -> int:
    left = (await ctx.get("left", type_hint=int) or 0) + count
    ctx.set("left", left)
    return left


@stock.handler()
async def reserve(ctx: ObjectContext, count: int) -> int:
    """Take some off the shelf. One caller at a time per item, so nothing is sold twice."""
    left = await ctx.get("left", type_hint=int) or 0
    if left < count:
        raise TerminalError(f"only {left} left of {ctx.key()}", status_code=409)

    def step() -> None:
        note(f"step reserve {count} {ctx.key()}")

    await ctx.run_typed("reserve", step)
    ctx.set("left", left - count)
    return left - count


@checkout.main()
async def run(ctx: WorkflowContext, order: Order) -> Receipt:
    """Reserve, charge, wait for the bank, wait for the customer, ship."""
    note("attempt")
    left = await ctx.object_call(reserve, key=order["item"], arg=order["count"])

    def charge() -> str:
        note("step charge")
        return f"payment-{ctx.key()}"

    payment = await ctx.run_typed("charge", charge)
    note("waiting for the bank")
    await ctx.sleep(timedelta(milliseconds=order["clearing_ms"]))

    name, confirmation = ctx.awakeable(type_hint=str)
    ctx.set("confirmation", name)
    note("waiting for the customer")
    confirmed = await confirmation

    def ship() -> str:
        note("step ship")
        return f"parcel-{ctx.key()}"

    parcel = await ctx.run_typed("ship", ship)
    return Receipt(payment=payment, parcel=parcel, stock_left=left, confirmed=confirmed)


@checkout.handler()
async def confirmation(ctx: WorkflowSharedContext) -> str | None:
    """The name of the awakeable that confirms this order; nothing until the bank has cleared."""
    return await ctx.get("confirmation", type_hint=str)


if __name__ == "__main__":
    serve([stock, checkout])
