// Reads one JSON request from stdin: {package, model, prompt, count, warmUp, threads}. Generates greedily with
// llama.cpp and prints one JSON line: {tokens, tok_s, peak_mib}.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const request = JSON.parse(fs.readFileSync(0, "utf8"));
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(path.join(request.package, "dist", "index.js")));
const {threads} = request;
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: threads});
const model = await llama.loadModel({modelPath: request.model});
const context = await model.createContext({contextSize: request.prompt.length + request.count + 8, threads});
const sequence = context.getSequence();

async function generate(count) {
    await sequence.clearHistory();
    let made = 0;
    for await (const _token of sequence.evaluate(request.prompt, {temperature: 0, yieldEogToken: true})) {
        made += 1;
        if (made >= count)
            break;
    }
    return made;
}

await generate(request.warmUp);
const started = performance.now();
const tokens = await generate(request.count);
const seconds = (performance.now() - started) / 1000;
const peak = process.resourceUsage().maxRSS / 1024;
console.log(JSON.stringify({tokens, tok_s: tokens / seconds, peak_mib: peak}));
await llama.dispose();
