// The smallest service: node examples/typescript/greeter.ts, then register http://localhost:9080.
import * as restate from "@restatedev/restate-sdk";

const greeter = restate.service({
  name: "Greeter",
  handlers: {
    greet: async (ctx: restate.Context, name: string) => {
      // Recorded: it runs once, whatever crashes around it.
      const greeting = await ctx.run("compose", () => `Hello, ${name}`);
      // Durable: it survives restarts of the service and of the server.
      await ctx.sleep({ milliseconds: 500 });
      return `${greeting}!`;
    },
  },
});

restate.serve({ services: [greeter], port: Number(process.env.PORT ?? 9080) });
