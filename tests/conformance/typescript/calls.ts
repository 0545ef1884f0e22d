// Handlers that call handlers: results, failures, ids, order, attaching, cancelling.
import * as restate from "@restatedev/restate-sdk";
import type { Context } from "@restatedev/restate-sdk";
import { type Failure, type Json, QUICK_RETRIES } from "./basics.ts";
import type { Ledger } from "./ledger.ts";

type Options = { key?: string; idempotencyKey?: string; headers?: Record<string, string> };

export function services(prefix: string, ledger: Ledger) {
  return [
    restate.service({
      name: `${prefix}Calls`,
      options: { retryPolicy: QUICK_RETRIES },
      handlers: { ...results(prefix), ...sends(prefix), ...others() },
    }),
    families(prefix, ledger),
  ];
}

function call(ctx: Context, service: string, method: string, parameter: Json, options?: Options) {
  return ctx.genericCall<Json, Json>({
    service,
    method,
    parameter,
    inputSerde: restate.serde.json,
    outputSerde: restate.serde.json,
    ...options,
  });
}

function results(prefix: string) {
  return {
    service: (ctx: Context, name: string) => call(ctx, `${prefix}Basics`, "greet", name),
    object: (ctx: Context, arg: { key: string; amount: number }) =>
      call(ctx, `${prefix}Store`, "add", arg.amount, { key: arg.key }),
    failing: async (ctx: Context, failure: Failure) => {
      try {
        await call(ctx, `${prefix}Failing`, "terminally", failure);
      } catch (error) {
        if (!(error instanceof restate.TerminalError)) throw error;
        return { code: error.code, message: error.message };
      }
      return {};
    },
    idempotent: async (ctx: Context, arg: { key: string; idempotency_key: string }) => {
      const answers: Json[] = [];
      for (const value of ["first", "second"]) {
        const options = { idempotencyKey: arg.idempotency_key };
        const body = { key: arg.key, value };
        answers.push(await call(ctx, `${prefix}Runs`, "once", body, options));
      }
      return answers;
    },
    fan_out: async (ctx: Context, arg: { key: string; count: number }) => {
      const running = Array.from({ length: arg.count }, (_, index) =>
        call(ctx, `${prefix}Store`, "add", 1, { key: `${arg.key}-${index}` }),
      );
      const answers = await restate.RestatePromise.all(running);
      return answers.reduce((sum: number, each) => sum + Number(each), 0);
    },
    headers: (ctx: Context, headers: Record<string, string>) =>
      ctx.genericCall<Uint8Array, Json>({
        service: `${prefix}Basics`,
        method: "headers",
        parameter: new Uint8Array(),
        headers,
        outputSerde: restate.serde.json,
      }),
  };
}

function sends(prefix: string) {
  return {
    send: (ctx: Context, arg: { key: string; amount: number; delay_ms: number }) =>
      ctx.genericSend<number>({
        service: `${prefix}Store`,
        method: "add",
        parameter: arg.amount,
        key: arg.key,
        delay: arg.delay_ms,
        inputSerde: restate.serde.json,
      }).invocationId,
    send_in_order: async (ctx: Context, arg: { key: string; count: number }) => {
      for (let index = 0; index < arg.count; index++) {
        ctx.genericSend<string>({
          service: `${prefix}Queue`,
          method: "pass_through",
          parameter: String(index).padStart(3, "0"),
          key: arg.key,
          inputSerde: restate.serde.json,
        });
      }
    },
    start_flow: async (ctx: Context, arg: { key: string; value: string }) => {
      try {
        return { value: await call(ctx, `${prefix}Flow`, "run", arg.value, { key: arg.key }) };
      } catch (error) {
        if (!(error instanceof restate.TerminalError)) throw error;
        return { code: error.code };
      }
    },
  };
}

function others() {
  return {
    attach: async (ctx: Context, id: string) => {
      try {
        return { value: await ctx.attach<Json>(restate.InvocationIdParser.fromString(id)) };
      } catch (error) {
        if (!(error instanceof restate.TerminalError)) throw error;
        return { code: error.code };
      }
    },
    cancel: async (ctx: Context, id: string) =>
      ctx.cancel(restate.InvocationIdParser.fromString(id)),
  };
}

function families(prefix: string, ledger: Ledger) {
  return restate.service({
    name: `${prefix}Families`,
    options: { inactivityTimeout: 50, retryPolicy: QUICK_RETRIES },
    handlers: {
      child: async (ctx: Context, key: string) => {
        const { id, promise } = ctx.awakeable<string>();
        ledger.add(`${key} child`, `${ctx.request().id} ${id}`);
        try {
          return await promise;
        } catch (error) {
          if (error instanceof restate.TerminalError) {
            ledger.add(`${key} child failed`, String(error.code));
          }
          throw error;
        }
      },
      parent: async (ctx: Context, key: string) => {
        try {
          return await call(ctx, `${prefix}Families`, "child", key);
        } catch (error) {
          if (error instanceof restate.TerminalError) {
            ledger.add(`${key} parent failed`, String(error.code));
          }
          throw error;
        }
      },
      stubborn: async (ctx: Context, key: string) => {
        const first = ctx.awakeable<string>();
        ledger.add(key, first.id);
        try {
          return await first.promise;
        } catch (error) {
          if (!(error instanceof restate.TerminalError)) throw error;
          const second = ctx.awakeable<string>();
          ledger.add(key, second.id);
          return `${error.code} ${await second.promise}`;
        }
      },
    },
  });
}
