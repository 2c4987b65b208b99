// node run.mjs MODEL FEEDS: run a fused cascade on tensors given as JSON, and print its outputs as JSON.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const ARRAYS = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array };
const [model, feedsFile] = process.argv.slice(2);

ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"] });
const feeds = {};
for (const [name, { type, dims, data }] of Object.entries(JSON.parse(readFileSync(feedsFile, "utf8")))) {
  feeds[name] = new ort.Tensor(type, ARRAYS[type].from(data), dims);
}
const outputs = await session.run(feeds);
const said = Object.entries(outputs).map(([name, { type, dims, data }]) => [name, { type, dims, data: Array.from(data, Number) }]);
console.log(JSON.stringify(Object.fromEntries(said)));
