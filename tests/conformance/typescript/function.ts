// The SDK's handler for AWS Lambda behind a plain HTTP port (PORT): a JSON event in, its answer out.
import * as http from "node:http";
import { createEndpointHandler, service } from "@restatedev/restate-sdk/lambda";
import type { Context } from "@restatedev/restate-sdk/lambda";

const { PORT = "" } = process.env;

const greeter = service({
  name: "FunctionTs",
  handlers: {
    greet: async (ctx: Context, name: string) => {
      const word = await ctx.run("word", () => "hello");
      await ctx.sleep(10);
      return `${word} ${name}`;
    },
    repeat: async (_ctx: Context, size: number) => "x".repeat(size),
  },
});

const handler = createEndpointHandler({ services: [greeter] });

http
  .createServer((request, response) => {
    const pieces: Buffer[] = [];
    request.on("data", (piece: Buffer) => pieces.push(piece));
    request.on("end", async () => {
      const answer = await handler(JSON.parse(Buffer.concat(pieces).toString()), {} as never);
      response.end(JSON.stringify(answer));
    });
  })
  .listen(Number(PORT), "127.0.0.1");
