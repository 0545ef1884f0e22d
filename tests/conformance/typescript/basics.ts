// Plain handlers: payloads, headers, outcomes of every kind, visibility.
import * as restate from "@restatedev/restate-sdk";
import type { Context } from "@restatedev/restate-sdk";
import type { Ledger } from "./ledger.ts";

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type Failure = { code: number; message: string; metadata?: Record<string, string> };

export const QUICK_RETRIES = { initialInterval: 20, exponentiationFactor: 1 };

const threeAttempts = (onMaxAttempts: "pause" | "kill") => ({
  initialInterval: 10,
  exponentiationFactor: 1,
  maxAttempts: 3,
  onMaxAttempts,
});

export function services(prefix: string, ledger: Ledger) {
  return [basics(prefix, ledger), failing(prefix, ledger), hidden(prefix)];
}

function basics(prefix: string, ledger: Ledger) {
  return restate.service({
    name: `${prefix}Basics`,
    options: { retryPolicy: QUICK_RETRIES },
    handlers: {
      echo: restate.handlers.handler(
        { accept: "*/*", input: restate.serde.binary, output: restate.serde.binary },
        async (_ctx: Context, payload: Uint8Array) => payload,
      ),
      greet: async (_ctx: Context, name: string) => `hello ${name}`,
      headers: async (ctx: Context) => Object.fromEntries(ctx.request().headers),
      nothing: async (ctx: Context) => {
        ledger.add("nothing", ctx.request().id);
      },
      private: restate.handlers.handler(
        { ingressPrivate: true },
        async (_ctx: Context, name: string) => `private ${name}`,
      ),
      call_private: (ctx: Context, name: string) =>
        ctx.genericCall<string, string>({
          service: `${prefix}Basics`,
          method: "private",
          parameter: name,
          inputSerde: restate.serde.json,
          outputSerde: restate.serde.json,
        }),
    },
  });
}

function failing(prefix: string, ledger: Ledger) {
  const untilHealed = async (_ctx: Context, key: string) => {
    const attempt = ledger.add(key);
    if (ledger.count(`${key} healed`) === 0) throw new Error("not healed yet");
    return attempt;
  };
  return restate.service({
    name: `${prefix}Failing`,
    options: { retryPolicy: QUICK_RETRIES },
    handlers: {
      terminally: async (_ctx: Context, failure: Failure) => {
        throw new restate.TerminalError(failure.message, {
          errorCode: failure.code,
          metadata: failure.metadata,
        });
      },
      at_first: async (_ctx: Context, arg: { key: string; times: number }) => {
        const attempt = ledger.add(arg.key);
        if (attempt <= arg.times) throw new Error(`attempt ${attempt} fails`);
        return attempt;
      },
      until_healed_pause: restate.handlers.handler(
        { retryPolicy: threeAttempts("pause") },
        untilHealed,
      ),
      until_healed_kill: restate.handlers.handler(
        { retryPolicy: threeAttempts("kill") },
        untilHealed,
      ),
    },
  });
}

function hidden(prefix: string) {
  return restate.service({
    name: `${prefix}Hidden`,
    options: { ingressPrivate: true },
    handlers: { greet: async (_ctx: Context, name: string) => `hidden ${name}` },
  });
}
