// The TypeScript SDK's ingress client at work: INGRESS, PREFIX and KEY in, JSON out.
import * as clients from "@restatedev/restate-sdk-clients";

const { INGRESS = "", PREFIX = "", KEY = "" } = process.env;
const ingress = clients.connect({ url: INGRESS });

// Only names are known here: the clients are typed by what a caller knows of a service.
const named = (service: string): any => ({ name: `${PREFIX}${service}` });
const service: any = ingress.serviceClient(named("Basics"));
const failing: any = ingress.serviceClient(named("Failing"));
const store: any = ingress.objectClient(named("Store"), KEY);
const sends: any = ingress.objectSendClient(named("Store"), KEY);
const flow: any = ingress.workflowClient(named("Flow"), KEY);

const greeting = await service.greet("you");
const total = await store.add(2);
const options = clients.rpc.sendOpts<number>({ idempotencyKey: KEY, delay: 50 });
const sent = await sends.add(3, options);
const again = await sends.add(3, options);
const delayed = await ingress.result(sent);
const submitted = await flow.workflowSubmit("order");
const early = await flow.workflowOutput();
await flow.approve("yes");
const attached = await flow.workflowAttach();
const late = await flow.workflowOutput();
let failure: unknown = null;
try {
  await failing.terminally({ code: 418, message: "teapot" });
} catch (error) {
  failure = (error as { status?: number }).status ?? String(error);
}

const report = {
  greeting,
  total,
  sent: sent.status,
  again: again.status,
  delayed,
  submitted: submitted.status,
  early: early.ready,
  attached,
  late: late.result,
  failure,
};
process.stdout.write(JSON.stringify(report));
