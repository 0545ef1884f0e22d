"""A sale in three steps, and a till that counts them: ``python -m examples.python.sales``.

What happens is noted in ``steps.log`` (or ``STEPS_FILE``): ``ran`` when a step is done, ``seen``
once its result is recorded. A step that ran again after it was seen would be a broken promise.
"""

import os
from pathlib import Path

import restate
from examples.python.serving import serve
from restate import Context, ObjectContext

STEPS_FILE = Path(os.environ.get("STEPS_FILE", "steps.log"))
STEPS = ("reserve", "charge", "ship")


def note(kind: str, sale: str, step: str) -> None:
    """One line in the file of steps."""
    with STEPS_FILE.open("a") as file:
        file.write(f"{kind} {sale} {step}\n")


till = restate.VirtualObject("Till")
sales = restate.Service("Sales")


@till.handler()
async def add(ctx: ObjectContext, count: int) -> int:
    """Count sales; zero only asks. Returns how many there were."""
    counted = (await ctx.get("count", type_hint=int) or 0) + count
    ctx.set("count", counted)
    return counted


@sales.handler()
async def sell(ctx: Context, sale: str) -> str:
    """Reserve, charge, ship; then the till of the sale's seller counts it."""
    for step in STEPS:

        def act(step: str = step) -> str:
            note("ran", sale, step)
            return step

        note("seen", sale, await ctx.run_typed(step, act))
    await ctx.object_call(add, key=sale.partition("-")[0], arg=1)
    return f"sold {sale}"


if __name__ == "__main__":
    serve([till, sales])
