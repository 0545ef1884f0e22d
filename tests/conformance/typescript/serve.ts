// Serve the suite's TypeScript services. Configured by the environment: PORT, PREFIX, LEDGER,
// VERSION, and STREAMS: "yes" for HTTP/2 with streaming, "no" for HTTP/1.1 without.
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

const server = streams ? http2.createServer(handler) : http.createServer(handler);
server.listen(Number(PORT), "127.0.0.1");
