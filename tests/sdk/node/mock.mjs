/** The mock provider, as seen from the tests: how to steer it by header, and what its books say. */
import { existsSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

const { MOCK_URL, RECORDINGS } = process.env;
const WAIT_MS = 5_000;

/** Request options of all four SDKs that choose a recorded answer. */
export const recording = (name, more = {}) => ({ headers: { 'x-mock-recording': name, ...more } });
export const status = (code) => ({ headers: { 'x-mock-status': String(code) } });

/** The length of a recorded body. */
export function recordedBytes(name) {
  const path = ['sse', 'json'].map((ending) => `${RECORDINGS}/${name}.${ending}`).find(existsSync);
  return statSync(path).size;
}

async function books(path) {
  return (await fetch(`${MOCK_URL}/__mock/${path}`)).json();
}

/** How many requests have reached the provider since it started. */
export async function received() {
  return (await books('stats')).requests;
}

/** What the provider saw of the WebSocket that was opened last, as soon as it is over. */
export async function lastSocket() {
  for (const end = Date.now() + WAIT_MS; Date.now() < end; await sleep(5)) {
    const entry = (await books('requests?last=1')).at(-1);
    if (entry.socket !== null && entry.finished_ms !== null) return entry.socket;
  }
  throw new Error(`the provider's last WebSocket was not over within ${WAIT_MS} ms`);
}

/** Watches the next request; one at a time, since nothing else tells whose it is. */
export async function watch() {
  const before = await received();

  /** The one request since then, as soon as `isReady` says so of it; times in milliseconds since the epoch. */
  async function only(isReady) {
    for (const end = Date.now() + WAIT_MS; Date.now() < end; await sleep(5)) {
      const count = (await received()) - before;
      if (count === 0) continue;
      if (count > 1) throw new Error(`${count} requests reached the provider instead of one`);
      const entry = (await books('requests?last=1')).at(-1);
      if (isReady(entry)) return entry;
    }
    throw new Error(`the provider's books did not get there within ${WAIT_MS} ms`);
  }

  return {
    finished: async () => (await only((entry) => entry.finished_ms !== null)).finished_ms,
    closedByClient: async () => (await only((entry) => entry.client_closed_at_ms !== null)).client_closed_at_ms,
  };
}
