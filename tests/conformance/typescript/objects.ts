// Virtual objects: state in every form, eager and lazy, and the order of a hot key.
import * as restate from "@restatedev/restate-sdk";
import type { ObjectContext, ObjectSharedContext } from "@restatedev/restate-sdk";
import { type Json, QUICK_RETRIES } from "./basics.ts";
import type { Ledger } from "./ledger.ts";

const { shared } = restate.handlers.object;

export function services(prefix: string, ledger: Ledger) {
  return [
    store(`${prefix}Store`, ledger, false),
    store(`${prefix}LazyStore`, ledger, true),
    queue(prefix, ledger),
  ];
}

function store(name: string, ledger: Ledger, enableLazyState: boolean) {
  return restate.object({
    name,
    options: { enableLazyState, retryPolicy: QUICK_RETRIES },
    handlers: {
      add: async (ctx: ObjectContext, amount: number) => {
        const total = ((await ctx.get<number>("total")) ?? 0) + amount;
        ctx.set("total", total);
        return total;
      },
      total: shared(async (ctx: ObjectSharedContext) => (await ctx.get<number>("total")) ?? 0),
      write: async (ctx: ObjectContext, entries: Record<string, Json>) => {
        for (const [name, value] of Object.entries(entries)) ctx.set(name, value);
      },
      read: shared(async (ctx: ObjectSharedContext, name: string) => await ctx.get<Json>(name)),
      names: shared(async (ctx: ObjectSharedContext) => await ctx.stateKeys()),
      clear: async (ctx: ObjectContext, name: string) => ctx.clear(name),
      clear_all: async (ctx: ObjectContext) => ctx.clearAll(),
      ...withinOne(ledger),
    },
  });
}

function withinOne(ledger: Ledger) {
  return {
    everything: async (ctx: ObjectContext, key: string) => {
      const names = async () => (await ctx.stateKeys()).sort();
      const seen: unknown[] = [await ctx.get("a"), await names()];
      ctx.set("a", 1);
      ctx.set("b", "two");
      seen.push(await ctx.get("a"), await names());
      ctx.clear("a");
      seen.push(await ctx.get("a"), await ctx.get("b"));
      ctx.clearAll();
      seen.push(await ctx.get("b"), await names());
      ctx.set("c", [3]);
      if (ledger.add(key) === 1) throw new Error("the first attempt fails at its end");
      return seen;
    },
    write_empty: async (ctx: ObjectContext) => {
      ctx.set("empty", new Uint8Array(), restate.serde.binary);
    },
    read_length: shared(async (ctx: ObjectSharedContext, name: string) => {
      const value = await ctx.get<Uint8Array>(name, restate.serde.binary);
      return value === null ? -1 : value.length;
    }),
    write_then_fail: async (ctx: ObjectContext, amount: number) => {
      ctx.set("total", amount);
      throw new restate.TerminalError("after the write", { errorCode: 418 });
    },
  };
}

function queue(prefix: string, ledger: Ledger) {
  return restate.object({
    name: `${prefix}Queue`,
    options: { retryPolicy: QUICK_RETRIES },
    handlers: {
      pass_through: async (ctx: ObjectContext, label: string) => {
        ledger.add(`queue ${ctx.key}`, `enter ${label}`);
        const passed = ((await ctx.get<number>("passed")) ?? 0) + 1;
        ctx.set("passed", passed);
        await ctx.run("leave", () => ledger.add(`queue ${ctx.key}`, `leave ${label}`));
        return passed;
      },
      hold: async (ctx: ObjectContext, key: string) => {
        const { id, promise } = ctx.awakeable<string>();
        ledger.add(key, id);
        return await promise;
      },
      passed: shared(async (ctx: ObjectSharedContext) => (await ctx.get<number>("passed")) ?? 0),
    },
  });
}
