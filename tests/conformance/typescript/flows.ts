// A workflow: run once, promises from every side, state read while it runs.
import * as restate from "@restatedev/restate-sdk";
import type { WorkflowContext, WorkflowSharedContext } from "@restatedev/restate-sdk";
import { QUICK_RETRIES } from "./basics.ts";
import type { Ledger } from "./ledger.ts";

export function services(prefix: string, ledger: Ledger) {
  const flow = restate.workflow({
    name: `${prefix}Flow`,
    options: { inactivityTimeout: 50, retryPolicy: QUICK_RETRIES },
    handlers: {
      run: async (ctx: WorkflowContext, value: string) => {
        ledger.add(`flow ${ctx.key}`);
        ctx.set("status", "waiting");
        let answer: string;
        try {
          answer = await ctx.promise<string>("answer");
        } catch (error) {
          if (!(error instanceof restate.TerminalError)) throw error;
          answer = `${error.code} ${error.message}`;
        }
        ctx.set("status", "done");
        return `${value} ${answer}`;
      },
      approve: (ctx: WorkflowSharedContext, answer: string) =>
        ctx.promise<string>("answer").resolve(answer),
      refuse: (ctx: WorkflowSharedContext, reason: string) =>
        ctx.promise<string>("answer").reject(reason),
      peek: async (ctx: WorkflowSharedContext) =>
        (await ctx.promise<string>("answer").peek()) ?? null,
      wait: async (ctx: WorkflowSharedContext) => await ctx.promise<string>("answer"),
      status: (ctx: WorkflowSharedContext) => ctx.get<string>("status"),
    },
  });
  return [flow];
}
