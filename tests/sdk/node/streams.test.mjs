/** Streams in time: chunks arrive as they are sent, an abort reaches the provider, a broken answer never passes as whole. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { streamText } from 'ai';

import { recordedBytes, recording, watch } from './mock.mjs';
import { EVERY } from './sides.mjs';

const messages = [{ role: 'user', content: 'Tell me a joke' }];
const ABORT_MS = 100;
const ABORTS = 5;

// The promise is for 99 of 100: a busy machine may make one of so few late.
function checkPrompt(delays) {
  const [, second] = delays.toSorted((one, other) => other - one);
  assert.ok(second <= ABORT_MS, `${delays} ms`);
}

/** Each opens a stream; with `signal` it can be aborted. All end by throwing when the answer is broken. */
const STREAMS = {
  'openai-chat-stream-usage': (side, steering, signal) =>
    side.openai().chat.completions.create({ model: 'gpt-4o-mini', messages, stream: true }, { ...steering, signal }),
  'openai-responses-stream-basic': (side, steering, signal) =>
    side.openai().responses.create({ model: 'gpt-5.5', input: 'Say hi', stream: true }, { ...steering, signal }),
  'anthropic-messages-stream-basic': (side, steering, signal) =>
    side
      .anthropic()
      .messages.create({ model: 'claude-opus-4-6', max_tokens: 1024, messages, stream: true }, { ...steering, signal }),
  'anthropic-messages-stream-emoji': (side, steering, signal) =>
    aiParts(side.aiAnthropic()('claude-opus-4-6'), steering, signal),
  'openai-chat-stream-no-usage': (side, steering, signal) => aiParts(side.aiOpenai().chat('gpt-4o-mini'), steering, signal),
};

/** The AI SDK hands errors out as parts of the stream; thrown, they are like those of the others. */
async function* aiParts(model, steering, abortSignal) {
  const result = streamText({ model, prompt: 'Say hi', maxRetries: 0, onError() {}, abortSignal, ...steering });
  for await (const part of result.fullStream) {
    if (part.type === 'error') throw part.error;
    if (part.type === 'text-delta') yield part;
  }
}

for (const side of EVERY) {
  for (const [name, open] of Object.entries(STREAMS)) {
    test(`${side.name}: the first chunk arrives before the last is sent: ${name}`, async () => {
      const seen = await watch();
      const arrivals = [];
      for await (const _ of await open(side, recording(name, { 'x-mock-pace-ms': '50' }))) arrivals.push(Date.now());
      const finished = await seen.finished();
      assert.ok(arrivals[0] < finished);
      // Not the first alone: a relay that passes one piece and then gathers the rest would have passed that.
      assert.ok(arrivals[Math.floor(arrivals.length / 2) - 1] < finished);
    });

    for (const [when, pace] of [
      ['while chunks flow', '20'],
      ['while the provider is silent', '400'],
    ]) {
      test(`${side.name}: an abort reaches the provider ${when}: ${name}`, async () => {
        const delays = [];
        for (let round = 0; round < ABORTS; round += 1) {
          const seen = await watch();
          const controller = new AbortController();
          const stream = await open(side, recording(name, { 'x-mock-pace-ms': pace }), controller.signal);
          const chunks = stream[Symbol.asyncIterator]();
          await chunks.next();
          const aborted = Date.now();
          controller.abort();
          const waited = (await seen.closedByClient()) - aborted;
          await chunks.next().catch(() => {});
          delays.push(waited);
        }
        checkPrompt(delays);
      });
    }

    for (const fault of ['cut', 'reset']) {
      test(`${side.name}: a stream that ends with a ${fault} throws: ${name}`, async () => {
        for (const share of [0.3, 0.9]) {
          const steering = recording(name, { 'x-mock-fault': `${fault}:${Math.floor(recordedBytes(name) * share)}` });
          await assert.rejects(async () => {
            for await (const _ of await open(side, steering)) {
              // Only the end counts.
            }
          });
        }
      });
    }
  }

  test(`${side.name}: an abort before the first byte reaches the provider`, async () => {
    const delays = [];
    for (let round = 0; round < ABORTS; round += 1) {
      const seen = await watch();
      const controller = new AbortController();
      const body = { model: 'gpt-4o-mini', messages };
      const steering = { headers: { 'x-mock-fault': 'hang-head' }, signal: controller.signal };
      const asked = assert.rejects(side.openai().chat.completions.create(body, steering), { name: 'Error' });
      await sleep(200);
      const aborted = Date.now();
      controller.abort();
      const waited = (await seen.closedByClient()) - aborted;
      await asked;
      delays.push(waited);
    }
    checkPrompt(delays);
  });
}
