// A service that takes signed requests only: KEY is the public key, PORT where to listen.
import * as http2 from "node:http2";
import { createEndpointHandler, object, service } from "@restatedev/restate-sdk";
import type { Context, ObjectContext } from "@restatedev/restate-sdk";

const { PORT = "", KEY = "" } = process.env;

const greeter = service({
  name: "SignedTs",
  handlers: { greet: async (ctx: Context) => await ctx.run("word", () => "hello") },
});
const keyed = object({
  name: "SignedTsObject",
  handlers: { key: async (ctx: ObjectContext) => ctx.key },
});

const handler = createEndpointHandler({ identityKeys: [KEY], services: [greeter, keyed] });
http2.createServer(handler).listen(Number(PORT), "127.0.0.1");
