// Waiting: sleeps, awakeables, signals, races. The short inactivity timeout makes them suspend.
import * as restate from "@restatedev/restate-sdk";
import type { Context } from "@restatedev/restate-sdk";
import { type Json, QUICK_RETRIES } from "./basics.ts";
import type { Ledger } from "./ledger.ts";

type Target = { id: string; name: string };

export function services(prefix: string, ledger: Ledger) {
  const handlers = { ...sleeps(ledger), ...awakeables(ledger), ...signals(ledger) };
  return [
    restate.service({
      name: `${prefix}Waiting`,
      options: { retryPolicy: QUICK_RETRIES },
      handlers,
    }),
    restate.service({
      name: `${prefix}Suspending`,
      options: { inactivityTimeout: 50, retryPolicy: QUICK_RETRIES },
      handlers,
    }),
  ];
}

function sleeps(ledger: Ledger) {
  return {
    sleep: async (ctx: Context, arg: { key: string; ms: number }) => {
      ledger.add(arg.key);
      await ctx.sleep(arg.ms);
      return "slept";
    },
    race: async (ctx: Context, arg: { key: string; ms: number }) => {
      const { id, promise } = ctx.awakeable<string>();
      ledger.add(arg.key, id);
      const timeout = ctx.sleep(arg.ms).map(() => "timeout");
      return await restate.RestatePromise.race([promise, timeout]);
    },
    two: async (ctx: Context, key: string) => {
      const first = ctx.awakeable<string>();
      const second = ctx.awakeable<string>();
      ledger.add(key, `${first.id} ${second.id}`);
      return await restate.RestatePromise.all([first.promise, second.promise]);
    },
  };
}

function awakeables(ledger: Ledger) {
  return {
    awakeable: async (ctx: Context, key: string) => {
      const { id, promise } = ctx.awakeable<Json>();
      ledger.add(key, id);
      try {
        return { value: await promise };
      } catch (error) {
        if (!(error instanceof restate.TerminalError)) throw error;
        return { code: error.code, message: error.message };
      }
    },
    resolve: async (ctx: Context, arg: { id: string; value: Json }) => {
      ctx.resolveAwakeable(arg.id, arg.value);
    },
    reject: async (ctx: Context, arg: { id: string; reason: string }) => {
      ctx.rejectAwakeable(arg.id, arg.reason);
    },
  };
}

function signals(ledger: Ledger) {
  return {
    signal: async (ctx: Context, arg: { key: string; name: string; times: number }) => {
      ledger.add(arg.key, ctx.request().id);
      const seen: Json[] = [];
      for (let count = 0; count < arg.times; count++) {
        try {
          seen.push(await ctx.signal<Json>(arg.name));
        } catch (error) {
          if (!(error instanceof restate.TerminalError)) throw error;
          seen.push(`${error.code} ${error.message}`);
        }
      }
      return seen;
    },
    resolve_signal: async (ctx: Context, arg: Target & { value: Json }) => {
      const id = restate.InvocationIdParser.fromString(arg.id);
      ctx.invocation(id).signal<Json>(arg.name).resolve(arg.value);
    },
    reject_signal: async (ctx: Context, arg: Target & { reason: string }) => {
      const id = restate.InvocationIdParser.fromString(arg.id);
      ctx.invocation(id).signal<Json>(arg.name).reject(arg.reason);
    },
  };
}
