"""Services of the official SDK that take requests signed with the key in ``KEY`` only."""

import os

import restate

signed = restate.Service("Signed")
keyed = restate.VirtualObject("SignedObject")


@signed.handler()
async def greet(ctx: restate.Context) -> str:
    return await ctx.run_typed("word", lambda: "hello")


@keyed.handler()
async def key(ctx: restate.ObjectContext) -> str:
    return ctx.key()


APP = restate.app([signed, keyed], identity_keys=[os.environ["KEY"]])
