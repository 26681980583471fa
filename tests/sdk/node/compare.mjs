/** What it means that an SDK gives the same: plain values of its objects, its errors and its headers. */
import assert from 'node:assert/strict';

import { DIRECT, PROXIED } from './sides.mjs';

/** Belong to one connection or one moment. `x-llm-proxy-request-id` is the one field that the proxy adds. */
const OF_THE_HOP = new Set(['connection', 'date', 'keep-alive', 'transfer-encoding', 'x-llm-proxy-request-id']);

/** Runs `measure(side)` direct, then demands the same of every way through the proxy. Gives what all gave. */
export async function onEverySide(measure) {
  const direct = await measure(DIRECT);
  for (const side of PROXIED) {
    assert.deepEqual(await measure(side), direct, `${side.name} differs from direct`);
  }
  return direct;
}

export function headers(fields) {
  const pairs = fields instanceof Headers ? [...fields] : Object.entries(fields ?? {});
  return Object.fromEntries(pairs.filter(([name]) => !OF_THE_HOP.has(name.toLowerCase())).sort());
}

/** An SDK's promise of an object or a stream: header fields, request id, and the object or every event. */
export async function answer(promise) {
  const { data, response, request_id: requestId } = await promise.withResponse();
  const streamed = typeof data?.[Symbol.asyncIterator] === 'function' && data.controller !== undefined;
  const given = streamed ? { events: await all(data) } : { object: plain(data) };
  return { headers: headers(response.headers), requestId, ...given };
}

export async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(plain(event));
  return events;
}

/** What an application can learn from the error that `call` must raise. */
export async function raised(call) {
  try {
    await call();
  } catch (error) {
    return described(error);
  }
  return assert.fail('nothing was raised');
}

export function described(error) {
  const facts = { class: error.constructor.name, message: error.message };
  for (const name of ['status', 'statusCode', 'code', 'type', 'param', 'requestID', 'error', 'responseBody', 'isRetryable', 'data']) {
    facts[name] = plain(error[name]);
  }
  return { ...facts, headers: headers(error.headers ?? error.responseHeaders) };
}

/** A value without classes, getters and functions; header fields inside it are those of the provider alone. */
export function plain(value) {
  if (value === undefined) return undefined;
  const keepTheProviders = (key, inner) => (/^(response)?headers$/i.test(key) && inner ? headers(inner) : inner);
  return JSON.parse(JSON.stringify(value, keepTheProviders));
}
