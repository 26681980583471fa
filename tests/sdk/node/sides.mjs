/**
 * The ways from an SDK to the provider: direct, through the proxy's bare host, and through its named prefixes. A side differs in
 * base URL and API key only, because that is all a user changes. Retries are off unless a test asks.
 */
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI, { AzureOpenAI } from 'openai';

const { MOCK_URL, PROXY_URL, PROXY_TOKEN } = process.env;
const PATIENT = { maxRetries: 0, timeout: 20_000 };

class Side {
  constructor(name, roots, keys) {
    Object.assign(this, { name, roots, keys });
  }

  /** The same way, as the holder of another proxy token. */
  withToken(token) {
    return new Side(this.name, this.roots, { openai: token, anthropic: token, azure: token });
  }

  openai(options = {}) {
    return new OpenAI({ baseURL: `${this.roots.openai}/v1`, apiKey: this.keys.openai, ...PATIENT, ...options });
  }

  anthropic(options = {}) {
    return new Anthropic({ baseURL: this.roots.anthropic, apiKey: this.keys.anthropic, ...PATIENT, ...options });
  }

  azure(options = {}) {
    const azure = { endpoint: this.roots.azure, apiKey: this.keys.azure, apiVersion: '2024-10-21' };
    return new AzureOpenAI({ ...azure, ...PATIENT, ...options });
  }

  aiOpenai() {
    return createOpenAI({ baseURL: `${this.roots.openai}/v1`, apiKey: this.keys.openai });
  }

  aiAnthropic() {
    return createAnthropic({ baseURL: `${this.roots.anthropic}/v1`, apiKey: this.keys.anthropic });
  }
}

const everywhere = (root) => ({ openai: root, anthropic: root, azure: root });

export const DIRECT = new Side('direct', everywhere(MOCK_URL), {
  openai: 'sk-mock-openai',
  anthropic: 'sk-mock-anthropic',
  azure: 'mock-azure',
});

const prefixes = { openai: `${PROXY_URL}/openai`, anthropic: `${PROXY_URL}/anthropic`, azure: `${PROXY_URL}/azure` };

export const PROXIED = PROXY_URL
  ? [
      new Side('bare host', everywhere(PROXY_URL), everywhere(PROXY_TOKEN)),
      new Side('prefixes', prefixes, everywhere(PROXY_TOKEN)),
    ]
  : [];

export const EVERY = [DIRECT, ...PROXIED];

/** For tests about the proxy itself: skipped when there is none. */
export const ABOUT_THE_PROXY = { skip: PROXY_URL ? false : '--direct-only' };
