// Streams generations from Quire, several at once, with nothing but the protos.
//
//   node generate.mjs 127.0.0.1:50051 "ROMEO:"                          one stream, printed as it comes
//   node generate.mjs 127.0.0.1:50051 "ROMEO:" --streams 64             64 at once; prints one line of counts
//   node generate.mjs 127.0.0.1:50051 "ROMEO:" --streams 64 --cancel 2  leaves each after its second message

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    streams: { type: "string", default: "1" },
    cancel: { type: "string", default: "0" },
    "max-tokens": { type: "string", default: "100" },
    "api-key": { type: "string", default: process.env.QUIRE_API_KEY ?? "" },
  },
});
const [address = "127.0.0.1:50051", text = "ROMEO:\n"] = positionals;
const numStreams = Number(options.streams);
const cancelAfter = Number(options.cancel);

const protos = fileURLToPath(new URL("../../../protos", import.meta.url));
const definition = loadSync("quire/v1/generation.proto", { includeDirs: [protos], keepCase: true, enums: String });
const { quire } = grpc.loadPackageDefinition(definition);
const client = new quire.v1.GenerationService(address, grpc.credentials.createInsecure());

// One request; resolves when its stream has ended, whichever way.
function generate(seed, onText) {
  return new Promise((resolve, reject) => {
    const metadata = new grpc.Metadata();
    if (options["api-key"]) metadata.set("authorization", `Bearer ${options["api-key"]}`);
    const sampling_params = { max_tokens: Number(options["max-tokens"]), seed, ignore_eos: cancelAfter > 0 };
    const call = client.Generate({ text, sampling_params }, metadata);
    const outcome = { messages: 0, tokens: 0, text: "", cancelled: false };
    call.on("data", (response) => {
      outcome.messages += 1;
      for (const delta of response.outputs) {
        outcome.tokens += delta.token_ids.length;
        outcome.text += delta.text;
        onText(delta.text);
      }
      if (outcome.messages === cancelAfter) call.cancel();
    });
    call.on("end", () => resolve(outcome));
    call.on("error", (error) => {
      if (error.code !== grpc.status.CANCELLED || !cancelAfter) return reject(error);
      resolve({ ...outcome, cancelled: true });
    });
  });
}

const print = numStreams === 1 ? (piece) => process.stdout.write(piece) : () => {};
const outcomes = await Promise.all(Array.from({ length: numStreams }, (_, seed) => generate(seed, print)));
if (numStreams === 1) {
  process.stdout.write("\n");
} else {
  const sum = (count) => outcomes.reduce((total, outcome) => total + count(outcome), 0);
  console.log(
    JSON.stringify({
      streams: outcomes.length,
      messages: sum((each) => each.messages),
      tokens: sum((each) => each.tokens),
      cancelled: sum((each) => Number(each.cancelled)),
      texts: outcomes.map((each) => each.text),
    }),
  );
}
if (cancelAfter > 0) process.stdin.resume().on("end", () => client.close());
else client.close();
