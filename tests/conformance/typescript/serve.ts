// Serve the suite's TypeScript services. Configured by the environment: PORT, PREFIX, LEDGER,
// VERSION, PROTOCOL_MAX (the highest protocol version that discovery admits to), and STREAMS: "yes"
// for HTTP/2 with streaming, "no" for HTTP/1.1 without.
import * as http from "node:http";
import * as http2 from "node:http2";
import { createEndpointHandler } from "@restatedev/restate-sdk";
import * as basics from "./basics.ts";
import * as calls from "./calls.ts";
import * as flows from "./flows.ts";
import { Ledger } from "./ledger.ts";
import * as objects from "./objects.ts";
import * as runs from "./runs.ts";
import * as waiting from "./waiting.ts";

const { PORT = "", PREFIX = "", LEDGER = "", VERSION = "", STREAMS = "" } = process.env;
const { PROTOCOL_MAX = "" } = process.env;
const ledger = new Ledger(LEDGER);
const streams = STREAMS === "yes";

const handler = createEndpointHandler({
  bidirectional: streams,
  services: [
    ...basics.services(PREFIX, ledger),
    ...runs.services(PREFIX, ledger, VERSION),
    ...objects.services(PREFIX, ledger),
    ...waiting.services(PREFIX, ledger),
    ...calls.services(PREFIX, ledger),
    ...flows.services(PREFIX, ledger),
  ],
});

// The SDK names the highest version that it speaks; what it is spoken to in is up to the server.
const admitting = (request: any, response: any) => {
  if (request.url.endsWith("/discover")) {
    const write = response.write.bind(response);
    response.write = (body: Uint8Array, done: () => void) => {
      const document = JSON.parse(Buffer.from(body).toString());
      document.maxProtocolVersion = Number(PROTOCOL_MAX);
      return write(JSON.stringify(document), done);
    };
  }
  handler(request, response);
};

const server = streams ? http2.createServer(admitting) : http.createServer(admitting);
server.listen(Number(PORT), "127.0.0.1");
