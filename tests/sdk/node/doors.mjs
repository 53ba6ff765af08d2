// The official client of node, doing as it is told. Each line of stdin is a call:
// the door it goes through, where to, and with what. Each line of stdout is what a program
// with that client has seen of it. Node starts slowly, so one process makes all calls.

import readline from "node:readline";

import OpenAI from "openai";

const doors = {
  async create(client, body, seen) {
    seen.answer = await client.chat.completions.create(body);
  },

  async stream(client, body, seen) {
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
      seen.chunks.push(chunk);
    }
  },

  async helper(client, body, seen) {
    const stream = client.chat.completions.stream(body);
    stream.on("chunk", (chunk) => seen.chunks.push(chunk));
    seen.answer = await stream.finalChatCompletion();
  },

  async withResponse(client, body, seen) {
    const asked = client.chat.completions.create(body);
    const { data, response, request_id } = await asked.withResponse();
    seen.answer = data;
    seen.response = described(response, { request_id });
  },

  async asResponse(client, body, seen) {
    const response = await client.chat.completions.create(body).asResponse();
    seen.response = described(response, { text: await response.text() });
  },

  async abort(client, body, seen) {
    const leaving = new AbortController();
    const options = { signal: leaving.signal };
    const stream = await client.chat.completions.create({ ...body, stream: true }, options);
    for await (const chunk of stream) {
      seen.chunks.push(chunk);
      leaving.abort();
    }
  },

  async leave(client, body, seen) {
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
      seen.chunks.push(chunk);
      break;
    }
  },

  async models(client, body, seen) {
    seen.answer = (await client.models.list()).data;
  },

  async model(client, body, seen) {
    seen.answer = await client.models.retrieve(body.model);
  },
};

function described(response, more) {
  return { status: response.status, headers: Object.fromEntries(response.headers), ...more };
}

function failure(error) {
  return {
    class: error.constructor.name,
    message: error.message,
    status: error.status ?? null,
    code: error.code ?? null,
    param: error.param ?? null,
    type: error.type ?? null,
    retry_after: error.headers?.get("retry-after") ?? null,
    request_id: error.requestID ?? null,
  };
}

// What the client waits for between two attempts is noted instead. It never waits for over a
// minute; what is longer is its patience with the server, and left alone. So are the timers
// of node's own connections.
const { setTimeout: later } = globalThis;

function hurried(waits) {
  return (run, milliseconds, ...rest) => {
    const [, , asking] = new Error().stack.split("\n");
    if (milliseconds > 60_000 || !asking.includes("/node_modules/openai/")) {
      return later(run, milliseconds, ...rest);
    }
    waits.push(milliseconds / 1000);
    return later(run, 0, ...rest);
  };
}

async function seenOf({ door, base_url, api_key, body, max_retries }) {
  const seen = { chunks: [], answer: null, error: null, waits: [] };
  const client = new OpenAI({ baseURL: base_url, apiKey: api_key, maxRetries: max_retries });
  globalThis.setTimeout = hurried(seen.waits);
  try {
    await doors[door](client, body, seen);
  } catch (error) {
    seen.error = failure(error);
  } finally {
    globalThis.setTimeout = later;
  }
  return seen;
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await seenOf(JSON.parse(line))));
}
