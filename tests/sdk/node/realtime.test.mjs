/** Realtime: the same events over a WebSocket, from servers and from browsers, the same ends and the same refusals. */
import assert from 'node:assert/strict';
import net from 'node:net';
import test from 'node:test';

import { OpenAIRealtimeWebSocket } from 'openai/realtime/websocket';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';
import { WebSocket } from 'ws';

import { onEverySide, plain } from './compare.mjs';
import { newToken, revoke } from './manage.mjs';
import { lastSocket, received } from './mock.mjs';
import { ABOUT_THE_PROXY, PROXIED } from './sides.mjs';

const model = 'gpt-realtime';
const WAIT_MS = 10_000;

/** The SDK speaks TLS to whatever address it is given, and there is none here: only the connection is changed. */
const createConnection = ({ host, port }) => net.connect({ host, port });

/** What browsers have: no fields of one's own, the key as a subprotocol or in the query. */
globalThis.WebSocket = class extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, { createConnection });
  }
};

const steering = (fields) => ({ options: { createConnection, headers: fields } });
const onServer = (side, fields = {}) => new OpenAIRealtimeWS({ model, ...steering(fields) }, side.openai());
const dangerouslyAllowBrowser = true;
const inBrowser = (side) => new OpenAIRealtimeWebSocket({ model, dangerouslyAllowBrowser }, side.openai());
const azure = { deploymentName: model, dangerouslyAllowBrowser };

const CLIENTS = {
  'OpenAI, a server': onServer,
  'OpenAI, a browser': inBrowser,
  'Azure, a server': (side) => OpenAIRealtimeWS.azure(side.azure(), { deploymentName: model, ...steering({}) }),
  'Azure, a browser': (side) => OpenAIRealtimeWebSocket.azure(side.azure(), azure),
  // The client then sends the credential as a bearer; a browser has it in the query.
  'Azure, a browser with a token provider': (side) => {
    const azureADTokenProvider = async () => side.keys.azure;
    return OpenAIRealtimeWebSocket.azure(side.azure({ apiKey: undefined, azureADTokenProvider }), azure);
  },
};

/** Hands every event to `hear`, and gives what was heard and how the session ended. */
function heard(realtime, hear) {
  const events = [];
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`still open, after ${JSON.stringify(events)}`)), WAIT_MS);
    realtime.on('error', ({ message }) => {
      clearTimeout(late);
      reject(new Error(message));
    });
    realtime.on('event', (event) => {
      events.push(plain(event));
      hear?.(event, events);
    });
    realtime.socket.addEventListener('close', ({ code, reason }) => {
      clearTimeout(late);
      resolve({ events, code, reason: reason.toString(), protocol: realtime.socket.protocol });
    });
  });
}

/** A whole session as an application has it. */
function conversation(realtime) {
  const question = { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'Say hi' }] };
  return heard(realtime, (event, events) => {
    if (event.type === 'session.created') {
      realtime.send({ type: 'session.update', session: { type: 'realtime', instructions: 'Answer in two words.' } });
    } else if (event.type === 'session.updated') {
      realtime.send({ type: 'conversation.item.create', item: question });
    } else if (event.type === 'conversation.item.done') {
      realtime.send({ type: 'response.create' });
    } else if (event.type === 'response.done') {
      const responses = events.filter(({ type }) => type === 'response.done').length;
      if (responses < 2) realtime.send({ type: 'response.create' });
      else realtime.close({ code: 4002, reason: 'seen enough' });
    }
  });
}

for (const [name, open] of Object.entries(CLIENTS)) {
  test(`every event of a session is equal: ${name}`, async () => {
    const given = await onEverySide(async (side) => {
      const session = await conversation(await open(side));
      const { close_code, close_reason, messages, protocol } = await lastSocket();
      return { session, provider: { close_code, close_reason, messages, protocol } };
    });
    const { events, ...end } = given.session;
    assert.equal(events[0].session.model, model);
    assert.equal(events.at(-1).response.usage.total_tokens, 49);
    const protocol = name.includes('browser') ? 'realtime' : '';
    assert.deepEqual(end, { code: 4002, reason: 'seen enough', protocol });
    assert.deepEqual([given.provider.close_code, given.provider.messages], [4002, 4]);
  });
}

for (const [talk, code, reason] of [
  ['close:1000', 1000, ''],
  ['close:4001:enough', 4001, 'enough'],
]) {
  test(`the provider ends a session with the same words: ${talk}`, async () => {
    const given = await onEverySide((side) => heard(onServer(side, { 'x-mock-socket': talk })));
    assert.deepEqual([given.code, given.reason, given.events.length], [code, reason, 1]);
  });
}

test('a broken session does not look finished', async () => {
  await onEverySide(async (side) => {
    const { code, events } = await heard(onServer(side, { 'x-mock-socket': 'cut' }));
    return { failed: code === 1006 || code === 1011, events };
  }).then(({ failed }) => assert.ok(failed));
});

for (const [fields, status] of [
  [{ 'x-mock-recording': 'error-openai-429-rate' }, 429],
  [{ 'x-mock-status': '403' }, 403],
]) {
  test(`a handshake that the provider refuses raises the same: ${status}`, async () => {
    await onEverySide(async (side) => {
      await assert.rejects(heard(onServer(side, fields)), new RegExp(`Unexpected server response: ${status}`));
    });
  });
}

test('the proxy is tested', ABOUT_THE_PROXY, () => assert.ok(PROXIED.length > 0));

for (const side of PROXIED) {
  test(`${side.name}: the proxy refuses a handshake, in a browser too`, async () => {
    const revoked = await newToken();
    await revoke(revoked);
    const mini = await newToken({ allowed_models: ['gpt-realtime-mini'] });
    const before = await received();
    for (const [token, status] of [
      [`sk-lp-${'A'.repeat(33)}`, 401],
      [revoked.token, 401],
      [mini.token, 403],
    ]) {
      for (const open of [onServer, inBrowser]) {
        const refused = heard(open(side.withToken(token)));
        await assert.rejects(refused, ({ message }) => message.includes(`${status}`) && !message.includes(token));
      }
    }
    assert.equal(await received(), before);
  });

  test(`${side.name}: the proxy ends a session with the reason`, async () => {
    const token = await newToken({ allowed_models: [model] });
    const holder = side.withToken(token.token);
    const other = { type: 'realtime', model: 'gpt-realtime-2' };
    const realtime = inBrowser(holder);
    const strayed = await heard(realtime, () => realtime.send({ type: 'session.update', session: other }));
    assert.deepEqual([strayed.code, strayed.reason], [1008, 'model_not_allowed']);

    let at = 0;
    const cut = await heard(onServer(holder), async () => {
      await revoke(token);
      at = Date.now();
    });
    assert.deepEqual([cut.code, cut.reason], [1008, 'token_revoked']);
    assert.ok(Date.now() - at < 2_000);
  });
}
