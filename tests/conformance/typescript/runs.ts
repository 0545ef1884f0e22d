// Durable steps: recorded once, retried, given up, replayed by the thousand, changed under way.
import * as restate from "@restatedev/restate-sdk";
import type { Context } from "@restatedev/restate-sdk";
import { QUICK_RETRIES } from "./basics.ts";
import type { Ledger } from "./ledger.ts";

type Step = { key: string; value: string };
type Bounded = { key: string; max_attempts: number };
type Refused = { key: string; code: number; message: string };

export function services(prefix: string, ledger: Ledger, version: string) {
  return [
    restate.service({
      name: `${prefix}Runs`,
      options: { retryPolicy: QUICK_RETRIES },
      handlers: { ...singleSteps(ledger), ...manySteps(ledger), ...determinism(ledger) },
    }),
    versioned(prefix, ledger, version),
  ];
}

function singleSteps(ledger: Ledger) {
  return {
    once: (ctx: Context, arg: Step) =>
      ctx.run("once", () => {
        ledger.add(arg.key);
        return arg.value;
      }),
    retried: (ctx: Context, arg: { key: string; times: number }) =>
      ctx.run(
        "retried",
        () => {
          const attempt = ledger.add(arg.key);
          if (attempt <= arg.times) throw new Error(`attempt ${attempt} fails`);
          return attempt;
        },
        { initialRetryInterval: 10 },
      ),
    terminal: async (ctx: Context, arg: Refused) => {
      try {
        const value = await ctx.run("terminal", (): string => {
          ledger.add(arg.key);
          throw new restate.TerminalError(arg.message, { errorCode: arg.code });
        });
        return { value };
      } catch (error) {
        if (!(error instanceof restate.TerminalError)) throw error;
        return { code: error.code, message: error.message };
      }
    },
    exhausted: async (ctx: Context, arg: Bounded) => {
      try {
        const value = await ctx.run(
          "exhausted",
          (): string => {
            throw new Error(`attempt ${ledger.add(arg.key)} fails`);
          },
          { maxRetryAttempts: arg.max_attempts, initialRetryInterval: 10, retryIntervalFactor: 1 },
        );
        return { value };
      } catch (error) {
        if (!(error instanceof restate.TerminalError)) throw error;
        return { code: error.code, attempts: ledger.count(arg.key) };
      }
    },
  };
}

function manySteps(ledger: Ledger) {
  return {
    steps: async (ctx: Context, arg: { key: string; count: number; size: number }) => {
      let total = 0;
      for (let index = 0; index < arg.count; index++) {
        const value = await ctx.run(`step ${index}`, () => {
          ledger.add(`${arg.key} step`, String(index));
          return String(index).padStart(6, "0") + "x".repeat(arg.size - 6);
        });
        total += value.length;
      }
      if (ledger.add(`${arg.key} attempt`) === 1) {
        throw new Error("the first attempt fails after its last step");
      }
      return total;
    },
    parallel: async (ctx: Context, arg: { key: string; count: number }) => {
      const running = Array.from({ length: arg.count }, (_, index) =>
        ctx.run(`step ${index}`, () => {
          ledger.add(arg.key, String(index));
          return index * index;
        }),
      );
      return await restate.RestatePromise.all(running);
    },
    changing: async (ctx: Context, key: string) => {
      const attempt = ledger.add(key);
      if (attempt === 2) await ctx.sleep(10);
      const value = await ctx.run("recorded", () => `attempt ${attempt}`);
      if (attempt === 1) throw new Error("the first attempt fails after its step");
      return value;
    },
  };
}

function determinism(ledger: Ledger) {
  return {
    chance: restate.handlers.handler(
      { inactivityTimeout: 50 },
      async (ctx: Context, key: string) => {
        const drawn = `${ctx.rand.uuidv4()} ${ctx.rand.random()} ${await ctx.date.now()}`;
        if (ledger.add(key, drawn) === 1) throw new Error("the first attempt fails after the dice");
        await ctx.sleep(300);
        return drawn;
      },
    ),
    recorded_chance: async (ctx: Context, key: string) => {
      const value = await ctx.run("dice", () => Math.random());
      ledger.add(key, String(value));
      await ctx.run("more", () => ledger.add(`${key} more`));
      if (ledger.count(key) === 1) throw new Error("the first attempt fails after the dice");
      return value;
    },
  };
}

function versioned(prefix: string, ledger: Ledger, version: string) {
  return restate.service({
    name: `${prefix}Versioned`,
    options: { inactivityTimeout: 50, retryPolicy: QUICK_RETRIES },
    handlers: {
      pinned: async (ctx: Context, key: string) => {
        const first = await ctx.run("version", () => version);
        const { id, promise } = ctx.awakeable<string>();
        ledger.add(key, id);
        await promise;
        return [first, version];
      },
    },
  });
}
