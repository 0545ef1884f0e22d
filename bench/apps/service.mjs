// The service of bench/service.py, written with the TypeScript SDK: node service.mjs PORT.
import * as restate from "@restatedev/restate-sdk";

const failedOnce = new Set();
const wakes = new Map();

function report(isReset) {
  const moments = [...wakes.values()].map((wake) => wake[0]).sort((a, b) => a - b);
  const late = [...wakes.values()].map((wake) => wake[1]).sort((a, b) => a - b);
  if (isReset) wakes.clear();
  if (moments.length === 0) return { count: 0 };
  return {
    count: moments.length,
    first_ms: moments[0],
    last_ms: moments[moments.length - 1],
    late_min_ms: late[0],
    late_p50_ms: late[Math.floor(late.length / 2)],
    late_p99_ms: late[Math.floor((late.length * 99) / 100)],
  };
}

const bench = restate.service({
  name: "Bench",
  handlers: {
    steps: async (ctx, count) => {
      for (let number = 0; number < count; number++) await ctx.run("step", () => number);
      return count;
    },
    echo: async (ctx, payload) => ctx.run("step", () => payload),
    fan: async (ctx, count) => {
      const calls = [];
      for (let number = 0; number < count; number++) {
        calls.push(ctx.genericCall({
          service: "Bench",
          method: "steps",
          parameter: 0,
          inputSerde: restate.serde.json,
          outputSerde: restate.serde.json,
        }));
      }
      await restate.RestatePromise.all(calls);
      return count;
    },
    hold: restate.handlers.handler(
      { inactivityTimeout: 100 },
      async (ctx, wakeMs) => {
        await ctx.sleep(Math.max(0, wakeMs - Date.now()));
        const now = Date.now();
        if (!wakes.has(ctx.request().id.toString())) {
          wakes.set(ctx.request().id.toString(), [now, now - wakeMs]);
        }
      },
    ),
    woken: async (_ctx, isReset) => report(isReset),
    replay: async (ctx, count) => {
      const arrived = performance.now();
      for (let number = 0; number < count; number++) await ctx.run("step", () => number);
      const key = ctx.request().id.toString();
      if (!failedOnce.has(key)) {
        failedOnce.add(key);
        throw new Error("let me try again");
      }
      return (performance.now() - arrived) / 1e3;
    },
  },
});

const counter = restate.object({
  name: "Counter",
  handlers: {
    add: async (ctx, amount) => {
      const total = ((await ctx.get("total")) ?? 0) + amount;
      ctx.set("total", total);
      return total;
    },
  },
});

restate.serve({ services: [bench, counter], port: Number(process.argv[2]) });
