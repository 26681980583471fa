/** What the proxy refuses by itself raises the class an application already handles, and is not repeated in vain. */
import assert from 'node:assert/strict';
import test from 'node:test';

import Anthropic from '@anthropic-ai/sdk';
import { APICallError, generateText } from 'ai';
import OpenAI from 'openai';

import { newToken, revoke } from './manage.mjs';
import { received, recording } from './mock.mjs';
import { ABOUT_THE_PROXY, PROXIED } from './sides.mjs';

const messages = [{ role: 'user', content: 'Say this is a test' }];

const chat = (side, { model = 'gpt-4o-mini', ...options } = {}) =>
  side.openai(options).chat.completions.create({ model, messages }, recording('openai-chat-basic'));
const message = (side, { model = 'claude-opus-4-6', ...options } = {}) =>
  side.anthropic(options).messages.create({ model, max_tokens: 64, messages }, recording('anthropic-messages-basic'));

/** A `fetch` that counts what the SDK sends: a refusal never reaches the provider, whose books would show nothing. */
function counted() {
  const counter = { sent: 0, fetch: (...call) => ((counter.sent += 1), fetch(...call)) };
  return counter;
}

async function refusal(call, expected, code) {
  const error = await call().then(
    () => assert.fail('nothing was raised'),
    (raised) => raised,
  );
  assert.ok(error instanceof expected, `${error.constructor.name}: ${error.message}`);
  if (code) assert.equal(error.code, code);
  assert.equal(error.requestID, error.headers.get('x-llm-proxy-request-id'));
  return error;
}

test('the proxy is tested', ABOUT_THE_PROXY, () => assert.ok(PROXIED.length > 0));

for (const side of PROXIED) {
  test(`${side.name}: an unknown token is an authentication error`, async () => {
    const stranger = side.withToken(`sk-lp-${'A'.repeat(33)}`);
    const before = await received();
    const error = await refusal(() => chat(stranger), OpenAI.AuthenticationError, 'invalid_api_key');
    assert.equal(error.headers.get('x-should-retry'), 'false');
    await refusal(() => message(stranger), Anthropic.AuthenticationError);
    for (const model of [stranger.aiOpenai()('gpt-5.5'), stranger.aiAnthropic()('claude-opus-4-6')]) {
      await assert.rejects(generateText({ model, prompt: 'Say hi' }), (raised) => {
        assert.ok(APICallError.isInstance(raised));
        assert.deepEqual([raised.statusCode, raised.isRetryable], [401, false]);
        return true;
      });
    }
    assert.equal(await received(), before);
  });

  test(`${side.name}: a revoked token is an authentication error`, async () => {
    const token = await newToken();
    const holder = side.withToken(token.token);
    await chat(holder);
    await revoke(token);
    await refusal(() => chat(holder), OpenAI.AuthenticationError, 'token_revoked');
    await refusal(() => message(holder), Anthropic.AuthenticationError);
  });

  test(`${side.name}: a model outside the list is a permission error`, async () => {
    const token = await newToken({ allowed_models: ['gpt-4o-mini', 'claude-opus-4-6'] });
    const holder = side.withToken(token.token);
    await chat(holder);
    await message(holder);
    await refusal(() => chat(holder, { model: 'gpt-5.5' }), OpenAI.PermissionDeniedError, 'model_not_allowed');
    await refusal(() => message(holder, { model: 'claude-haiku-4-5' }), Anthropic.PermissionDeniedError);
  });

  test(`${side.name}: a spent rate is a rate limit error that says when`, async () => {
    const holder = side.withToken((await newToken({ requests_per_minute: 1 })).token);
    await chat(holder);
    const error = await refusal(() => chat(holder), OpenAI.RateLimitError, 'rate_limit_exceeded');
    assert.ok(Number(error.headers.get('retry-after')) > 0);
    assert.equal(error.headers.get('x-ratelimit-limit-requests'), '1');
    await refusal(() => message(holder), Anthropic.RateLimitError);
  });

  test(`${side.name}: a spent quota is a rate limit error that is not repeated`, async () => {
    const holder = side.withToken((await newToken({ max_requests: 1 })).token);
    await chat(holder);
    const before = await received();
    for (const [ask, expected, code] of [
      [chat, OpenAI.RateLimitError, 'insufficient_quota'],
      [message, Anthropic.RateLimitError, undefined],
    ]) {
      const counter = counted();
      const error = await refusal(() => ask(holder, { maxRetries: 2, fetch: counter.fetch }), expected, code);
      assert.equal(error.headers.get('x-should-retry'), 'false');
      assert.equal(counter.sent, 1);
    }
    assert.equal(await received(), before);
  });

  test(`${side.name}: revoking ends a running stream with an error`, async () => {
    const token = await newToken();
    const steering = recording('openai-responses-stream-long-reasoning', { 'x-mock-pace-ms': '200' });
    const body = { model: 'o3-mini', input: 'Say hi', stream: true };
    const stream = await side.withToken(token.token).openai().responses.create(body, steering);
    const events = stream[Symbol.asyncIterator]();
    await events.next();
    await revoke(token);
    const revoked = Date.now();
    await assert.rejects(async () => {
      while (!(await events.next()).done && Date.now() - revoked < 2_000);
    }, OpenAI.APIError);
  });
}
