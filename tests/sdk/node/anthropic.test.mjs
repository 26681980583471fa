/** @anthropic-ai/sdk: the same objects and the same errors. */
import assert from 'node:assert/strict';
import test from 'node:test';

import { answer, onEverySide, plain, raised } from './compare.mjs';
import { received, recording, status } from './mock.mjs';

const messages = [{ role: 'user', content: 'Tell me a joke about OpenTelemetry' }];
const whole = { model: 'claude-opus-4-6', max_tokens: 2048, messages };
const tools = [{ name: 'get_weather', input_schema: { type: 'object', properties: {} } }];

for (const name of ['anthropic-messages-basic', 'anthropic-messages-cache-read']) {
  test(`a message is equal: ${name}`, async () => {
    const given = await onEverySide((side) => answer(side.anthropic().messages.create(whole, recording(name))));
    assert.ok(given.object.usage.output_tokens > 0);
  });
}

for (const [name, parameters] of [
  ['anthropic-messages-stream-basic', {}],
  ['anthropic-messages-stream-cache-write', {}],
  ['anthropic-messages-stream-emoji', {}],
  ['anthropic-messages-stream-thinking', { thinking: { type: 'adaptive' } }],
  ['anthropic-messages-stream-tool-use', { tools }],
  ['anthropic-messages-stream-web-search', { tools: [{ type: 'web_search_20250305', name: 'web_search' }] }],
]) {
  test(`every event of a streamed message is equal: ${name}`, async () => {
    const body = { ...whole, ...parameters, stream: true };
    const given = await onEverySide((side) => answer(side.anthropic().messages.create(body, recording(name))));
    assert.equal(given.events.at(-1).type, 'message_stop');
  });
}

test('the stream helper gathers the same message', async () => {
  const given = await onEverySide(async (side) => {
    const stream = side.anthropic().messages.stream(whole, recording('anthropic-messages-stream-thinking'));
    return { message: plain(await stream.finalMessage()), requestId: stream.request_id };
  });
  assert.ok(given.message.content.length > 1);
});

test('counted tokens are equal', async () => {
  const body = { model: 'claude-opus-4-6', messages };
  const given = await onEverySide((side) => answer(side.anthropic().messages.countTokens(body, recording('anthropic-count-tokens'))));
  assert.equal(given.object.input_tokens, 16);
});

for (const [steering, expected] of [
  [recording('error-anthropic-400'), 400],
  [recording('error-anthropic-401'), 401],
  [status(404), 404],
  [status(429), 429],
  [status(500), 500],
  [recording('error-anthropic-529'), 529],
]) {
  for (const stream of [false, true]) {
    test(`the provider's errors raise the same: ${JSON.stringify(steering.headers)}, stream ${stream}`, async () => {
      const given = await onEverySide((side) => raised(() => side.anthropic().messages.create({ ...whole, stream }, steering)));
      assert.equal(given.status, expected);
    });
  }
}

for (const [steering, attempts] of [
  [recording('error-anthropic-529'), 3],
  [recording('error-anthropic-401'), 1],
]) {
  test(`the SDK retries as often as without the proxy: ${JSON.stringify(steering.headers)}`, async () => {
    const given = await onEverySide(async (side) => {
      const before = await received();
      const error = await raised(() => side.anthropic({ maxRetries: 2 }).messages.create(whole, steering));
      return { error, attempts: (await received()) - before };
    });
    assert.equal(given.attempts, attempts);
  });
}
