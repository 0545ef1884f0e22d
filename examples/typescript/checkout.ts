// A checkout that survives crashes: node examples/typescript/checkout.ts.
//
// Every step that touches the world also writes a line to steps.log (or STEPS_FILE). That file is the
// service's own count of what it did: a step that ran twice would be there twice.
import { appendFileSync } from "node:fs";
import * as restate from "@restatedev/restate-sdk";
import type { ObjectContext, WorkflowContext, WorkflowSharedContext } from "@restatedev/restate-sdk";

type Order = { item: string; count: number; clearing_ms: number };

const STEPS_FILE = process.env.STEPS_FILE ?? "steps.log";
const note = (line: string) => appendFileSync(STEPS_FILE, `${line}\n`);

const stock = restate.object({
  name: "Stock",
  handlers: {
    refill: async (ctx: ObjectContext, count: number) => {
      const left = ((await ctx.get<number>("left")) ?? 0) + count;
      ctx.set("left", left);
      return left;
    },
    // Take some off the shelf. One caller at a time per item, so nothing is sold twice.
    reserve: async (ctx: ObjectContext, count: number) => {
      const left = (await ctx.get<number>("left")) ?? 0;
      if (left < count) {
        throw new restate.TerminalError(`only ${left} left of ${ctx.key}`, { errorCode: 409 });
      }
      await ctx.run("reserve", () => note(`step reserve ${count} ${ctx.key}`));
      ctx.set("left", left - count);
      return left - count;
    },
  },
});

const checkout = restate.workflow({
  name: "Checkout",
  handlers: {
    // Reserve, charge, wait for the bank, wait for the customer, ship.
    run: async (ctx: WorkflowContext, order: Order) => {
      note("attempt");
      const left = await ctx.objectClient(stock, order.item).reserve(order.count);
      const payment = await ctx.run("charge", () => {
        note("step charge");
        return `payment-${ctx.key}`;
      });
      note("waiting for the bank");
      await ctx.sleep(order.clearing_ms);

      const { id, promise } = ctx.awakeable<string>();
      ctx.set("confirmation", id);
      note("waiting for the customer");
      const confirmed = await promise;

      const parcel = await ctx.run("ship", () => {
        note("step ship");
        return `parcel-${ctx.key}`;
      });
      return { payment, parcel, stock_left: left, confirmed };
    },
    // The name of the awakeable that confirms this order; nothing until the bank has cleared.
    confirmation: async (ctx: WorkflowSharedContext) => await ctx.get<string>("confirmation"),
  },
});

restate.serve({ services: [stock, checkout], port: Number(process.env.PORT ?? 9080) });
