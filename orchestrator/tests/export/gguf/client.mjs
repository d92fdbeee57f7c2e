// Reads one JSON request from stdin and answers with one JSON object on stdout, computed by llama.cpp:
// {package, model, lora, texts, prompts, count, sequences} -> {tokens, greedy, losses}.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const request = JSON.parse(fs.readFileSync(0, "utf8"));
const entry = path.join(request.package, "dist", "index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1});
const model = await llama.loadModel({modelPath: request.model});
const longest = Math.max(...request.sequences.map((ids) => ids.length), 64) + request.count;
const lora = request.lora ? {adapters: [{filePath: request.lora, scale: 1}]} : undefined;
const context = await model.createContext({contextSize: longest, batchSize: 512, threads: 1, lora});
const sequence = context.getSequence();

const tokens = request.texts.map((text) => [...model.tokenize(text, true)]);
const greedy = [];
for (const prompt of request.prompts) {
    await sequence.clearHistory();
    const found = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        found.push(token);
        if (found.length >= request.count)
            break;
    }
    greedy.push(found);
}
const losses = [];
for (const ids of request.sequences) {
    await sequence.clearHistory();
    const asked = ids.map((id, at) => at + 1 < ids.length
        ? [id, {generateNext: {probabilities: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}}}]
        : id);
    const answers = await sequence.controlledEvaluate(asked);
    losses.push(ids.slice(1).map((id, at) => -Math.log(answers[at].next.probabilities.get(id))));
}
console.log(JSON.stringify({tokens, greedy, losses}));
await llama.dispose();
