/** The Vercel AI SDK: its default OpenAI model speaks Responses, `.chat()` speaks chat completions, Anthropic uses `x-api-key`. */
import assert from 'node:assert/strict';
import test from 'node:test';

import { embed, generateText, jsonSchema, streamText, tool } from 'ai';

import { onEverySide, plain, raised } from './compare.mjs';
import { received, recording, status } from './mock.mjs';

const prompt = 'Say this is a test';
const anyTool = tool({ inputSchema: jsonSchema({ type: 'object', properties: {} }) });

const MODELS = {
  responses: (side) => side.aiOpenai()('gpt-5.5'),
  chat: (side) => side.aiOpenai().chat('gpt-4o-mini'),
  messages: (side) => side.aiAnthropic()('claude-opus-4-6'),
};

for (const [kind, name, tools] of [
  ['responses', 'openai-responses-basic'],
  ['chat', 'openai-chat-basic'],
  ['chat', 'openai-chat-tool-calls', { get_current_weather: anyTool }],
  ['messages', 'anthropic-messages-basic'],
]) {
  test(`generated text is equal: ${name}`, async () => {
    const given = await onEverySide(async (side) => {
      const result = await generateText({ model: MODELS[kind](side), prompt, tools, maxRetries: 0, ...recording(name) });
      const { text, toolCalls, finishReason, usage, warnings, providerMetadata } = result;
      const { id, modelId, timestamp, headers, body } = result.response;
      return ownClockGone({ text, toolCalls, finishReason, usage, warnings, providerMetadata, response: { id, modelId, timestamp, headers, body } });
    });
    assert.ok(given.usage.totalTokens > 0);
  });
}

for (const [kind, name, tools] of [
  ['responses', 'openai-responses-stream-basic'],
  ['responses', 'openai-responses-stream-failed'],
  ['chat', 'openai-chat-stream-usage'],
  ['chat', 'openai-chat-stream-no-usage'],
  ['chat', 'groq-chat-stream-error-event'],
  ['messages', 'anthropic-messages-stream-basic'],
  ['messages', 'anthropic-messages-stream-thinking'],
  ['messages', 'anthropic-messages-stream-tool-use', { get_weather: anyTool }],
]) {
  test(`every part of streamed text is equal: ${name}`, async () => {
    const given = await onEverySide(async (side) => {
      const result = streamText({ model: MODELS[kind](side), prompt, tools, maxRetries: 0, onError() {}, ...recording(name) });
      const parts = [];
      for await (const part of result.fullStream) parts.push(ownClockGone(errorAsValue(part)));
      return parts;
    });
    assert.ok(given.length > 1);
  });
}

test('an embedding is equal', async () => {
  const given = await onEverySide(async (side) => {
    const model = side.aiOpenai().embedding('text-embedding-3-small');
    const { embedding, usage } = await embed({ model, value: prompt, maxRetries: 0, ...recording('openai-embeddings-batch') });
    return plain({ embedding, usage });
  });
  assert.ok(given.embedding.length > 0);
});

for (const [kind, steering, expected] of [
  ['responses', status(400), 400],
  ['chat', recording('error-openai-401'), 401],
  ['chat', recording('error-openai-404-model'), 404],
  ['chat', recording('error-openai-429-rate'), 429],
  ['messages', recording('error-anthropic-400'), 400],
  ['messages', recording('error-anthropic-529'), 529],
]) {
  test(`the provider's errors raise the same: ${kind} ${JSON.stringify(steering.headers)}`, async () => {
    const given = await onEverySide((side) =>
      raised(() => generateText({ model: MODELS[kind](side), prompt, maxRetries: 0, ...steering })),
    );
    assert.deepEqual([given.class, given.statusCode], ['APICallError', expected]);
  });
}

test('the SDK retries as often as without the proxy', async () => {
  const given = await onEverySide(async (side) => {
    const before = await received();
    const model = MODELS.chat(side);
    await raised(() => generateText({ model, prompt, maxRetries: 2, ...recording('error-openai-429-rate') }));
    return (await received()) - before;
  });
  assert.equal(given, 3);
});

/** Where a provider states no time, the SDK puts its own clock; times of the recordings are long past. */
function ownClockGone(value) {
  const isNow = (key, inner) => key === 'timestamp' && Date.now() - Date.parse(inner) < 60_000;
  return JSON.parse(JSON.stringify(plain(value), (key, inner) => (isNow(key, inner) ? undefined : inner)));
}

/** JSON would make an empty object of an Error. */
function errorAsValue(part) {
  if (!(part.error instanceof Error)) return part;
  return { type: part.type, error: { name: part.error.name, message: part.error.message } };
}
