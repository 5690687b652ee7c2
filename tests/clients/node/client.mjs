// What people do with the Node `openai` package; prints what came of it as one JSON document.
//
//     node client.mjs http://HOST:PORT/v1 MODEL SCENARIO [PROMPT]

import OpenAI from "openai";

const [, , baseURL, model, scenario, prompt = "Speak of love."] = process.argv;
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: prompt }];

const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] },
  },
};

const scenarios = {
  chat: () => client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 }),

  completion: () => client.completions.create({ model, prompt, max_tokens: 12, temperature: 0 }),

  async chatStream() {
    const stream = await client.chat.completions.create({
      model,
      messages,
      max_tokens: 12,
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { text, usage };
  },

  async completionStream() {
    const stream = await client.completions.create({ model, prompt, max_tokens: 12, temperature: 0, stream: true });
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0].text;
    return { text };
  },

  several: () => client.chat.completions.create({ model, messages, max_tokens: 8, n: 4, seed: 1, temperature: 1 }),

  logprobs: () =>
    client.chat.completions.create({ model, messages, max_tokens: 4, temperature: 0, logprobs: true, top_logprobs: 3 }),

  stop: () => client.chat.completions.create({ model, messages, max_tokens: 60, temperature: 0, stop: ["e", "a"] }),

  schema: () =>
    client.chat.completions.create({
      model,
      messages,
      max_tokens: 60,
      response_format: {
        type: "json_schema",
        json_schema: {
          name: "mood",
          strict: true,
          schema: {
            type: "object",
            properties: { mood: { enum: ["glad", "sad"] }, sure: { type: "boolean" } },
            required: ["mood", "sure"],
            additionalProperties: false,
          },
        },
      },
    }),

  tools: () => client.chat.completions.create({ model, messages, tools: [weather] }),

  // The package's own helper puts the deltas together and checks them.
  async toolsStream() {
    const stream = client.chat.completions.stream({ model, messages, tools: [weather] });
    const final = await stream.finalChatCompletion();
    return final;
  },

  async models() {
    const names = [];
    for await (const each of client.models.list()) names.push(each.id);
    return names;
  },

  async error() {
    try {
      await client.chat.completions.create({ model: "nope", messages });
      return null;
    } catch (error) {
      return { status: error.status, kind: error.constructor.name, message: error.message };
    }
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
