/** openai: the same objects and the same errors. */
import assert from 'node:assert/strict';
import test from 'node:test';

import { toFile } from 'openai';

import { answer, headers, onEverySide, plain, raised } from './compare.mjs';
import { received, recording, status } from './mock.mjs';

const messages = [{ role: 'user', content: 'Say this is a test' }];
const tools = [{ type: 'function', function: { name: 'get_current_weather', parameters: { type: 'object', properties: {} } } }];
const usage = { stream_options: { include_usage: true } };

const chat = (side, name, parameters = {}) =>
  side.openai().chat.completions.create({ model: 'gpt-4o-mini', messages, ...parameters }, recording(name));

for (const name of ['openai-chat-basic', 'openai-chat-japanese', 'openai-chat-o3-reasoning', 'openai-chat-audio-input']) {
  test(`a chat completion is equal: ${name}`, async () => {
    const given = await onEverySide((side) => answer(chat(side, name)));
    assert.ok(given.object.usage.total_tokens > 0);
  });
}

test('tool calls are equal', async () => {
  const given = await onEverySide((side) => answer(chat(side, 'openai-chat-tool-calls', { tools })));
  assert.equal(given.object.choices[0].message.tool_calls.length, 2);
});

for (const [name, parameters] of [
  ['openai-chat-stream-no-usage', {}],
  ['openai-chat-stream-usage', usage],
  ['openai-chat-stream-tool-calls', { tools, ...usage }],
  ['openai-chat-stream-n-choices', { n: 2, ...usage }],
  ['synthetic-chat-stream-multilingual', usage],
]) {
  test(`every chunk of a streamed chat completion is equal: ${name}`, async () => {
    const given = await onEverySide((side) => answer(chat(side, name, { stream: true, ...parameters })));
    assert.equal(given.events.some((event) => event.usage), 'stream_options' in parameters);
  });
}

test('chunks are equal when every byte comes alone', async () => {
  const steering = recording('synthetic-chat-stream-multilingual', { 'x-mock-split': '1' });
  const body = { model: 'gpt-4o-mini', messages, stream: true };
  await onEverySide((side) => answer(side.openai().chat.completions.create(body, steering)));
});

for (const coding of ['gzip', 'deflate']) {
  test(`answers coded as ${coding} are equal`, async () => {
    const steering = recording('openai-chat-stream-usage', { 'x-mock-encoding': coding });
    const body = { model: 'gpt-4o-mini', messages, stream: true };
    const given = await onEverySide((side) => answer(side.openai().chat.completions.create(body, steering)));
    assert.equal(given.headers['content-encoding'], coding);
  });
}

test('the stream helper gathers the same completion', async () => {
  const given = await onEverySide(async (side) => {
    const body = { model: 'gpt-4o', messages, ...usage };
    const stream = side.openai().chat.completions.stream(body, recording('openai-chat-stream-tool-calls'));
    return plain(await stream.finalChatCompletion());
  });
  assert.ok(given.choices[0].message.tool_calls.length > 0);
});

test('a response is equal', async () => {
  const given = await onEverySide((side) =>
    answer(side.openai().responses.create({ model: 'gpt-5.5', input: 'Say hi' }, recording('openai-responses-basic'))),
  );
  assert.equal(given.object.status, 'completed');
});

for (const name of ['openai-responses-stream-basic', 'openai-responses-stream-tool', 'openai-responses-stream-long-reasoning']) {
  test(`every event of a streamed response is equal: ${name}`, async () => {
    const given = await onEverySide((side) =>
      answer(side.openai().responses.create({ model: 'gpt-5.5', input: 'Say hi', stream: true }, recording(name))),
    );
    assert.equal(given.events.at(-1).type, 'response.completed');
  });
}

for (const [name, ask] of [
  ['openai-responses-stream-failed', (client, steering) => client.responses.create({ model: 'gpt-5-nano', input: 'Say hi', stream: true }, steering)],
  ['groq-chat-stream-error-event', (client, steering) => client.chat.completions.create({ model: 'm', messages, stream: true }, steering)],
  ['openrouter-stream-error', (client, steering) => client.chat.completions.create({ model: 'm', messages, stream: true }, steering)],
]) {
  test(`an error in a stream is equal, and so is what came before it: ${name}`, async () => {
    await onEverySide(async (side) => {
      const events = [];
      const outcome = await raised(async () => {
        for await (const event of await ask(side.openai(), recording(name))) events.push(plain(event));
        throw new Error('a clean end'); // whether the SDK raises or hands the error out is its business
      });
      assert.ok(events.length > 0);
      return { outcome, events };
    });
  });
}

test('a streamed legacy completion is equal', async () => {
  const body = { model: 'davinci-002', prompt: 'Tell me a joke', stream: true };
  await onEverySide((side) => answer(side.openai().completions.create(body, recording('openai-completions-stream'))));
});

for (const [name, parameters] of [
  ['openai-embeddings', {}], // the SDK asks for base64 by itself and decodes it
  ['openai-embeddings-batch', { encoding_format: 'float' }],
]) {
  test(`embeddings are equal: ${name}`, async () => {
    const body = { model: 'text-embedding-ada-002', input: 'Tell me a joke', ...parameters };
    const given = await onEverySide(async (side) => plain(await side.openai().embeddings.create(body, recording(name))));
    assert.equal(typeof given.data[0].embedding[0], 'number');
  });
}

test('a moderation is equal', () => onEverySide((side) => answer(side.openai().moderations.create({ input: 'Tell me a joke' }))));

test('an image is equal', () =>
  onEverySide((side) => answer(side.openai().images.generate({ model: 'gpt-image-1', prompt: 'a lighthouse' }))));

test('a transcription is equal', async () => {
  const given = await onEverySide(async (side) => {
    const file = await toFile(Buffer.alloc(128 * 1024, 'RIFF'), 'speech.wav', { type: 'audio/wav' });
    return answer(side.openai().audio.transcriptions.create({ model: 'gpt-4o-transcribe', file }));
  });
  assert.ok(given.object.text);
});

test('speech is the same bytes', async () => {
  const given = await onEverySide(async (side) => {
    const body = { model: 'gpt-4o-mini-tts', voice: 'alloy', input: 'Say this is a test' };
    const spoken = await side.openai().audio.speech.create(body);
    return { headers: headers(spoken.headers), bytes: Buffer.from(await spoken.arrayBuffer()).toString('base64') };
  });
  assert.ok(given.bytes.length > 0);
});

test('models are equal', async () => {
  const listed = await onEverySide(async (side) => {
    const { data, response } = await side.openai().models.list().withResponse();
    return { headers: headers(response.headers), data: plain(data.data) };
  });
  await onEverySide((side) => answer(side.openai().models.retrieve(listed.data[0].id)));
});

test('an uploaded file is equal', async () => {
  const given = await onEverySide(async (side) => {
    const file = await toFile(Buffer.from('{"custom_id": "1"}\n'.repeat(8192)), 'batch.jsonl');
    return answer(side.openai().files.create({ file, purpose: 'batch' }));
  });
  assert.equal(given.object.object, 'file');
});

test('Azure: a chat completion and a stream are equal', async () => {
  const body = { model: 'my-deployment', messages };
  await onEverySide((side) => answer(side.azure().chat.completions.create(body, recording('openai-chat-basic'))));
  const given = await onEverySide((side) =>
    answer(side.azure().chat.completions.create({ ...body, stream: true }, recording('azure-chat-stream'))),
  );
  assert.ok(given.events[0].prompt_filter_results);
});

for (const [steering, expected] of [
  [status(400), 'BadRequestError'],
  [recording('error-openai-401'), 'AuthenticationError'],
  [recording('error-openai-404-model'), 'NotFoundError'],
  [recording('error-openai-429-rate'), 'RateLimitError'],
  [status(429), 'RateLimitError'],
  [status(500), 'InternalServerError'],
  [status(529), 'InternalServerError'],
]) {
  for (const stream of [false, true]) {
    test(`the provider's errors raise the same: ${JSON.stringify(steering.headers)}, stream ${stream}`, async () => {
      const given = await onEverySide((side) =>
        raised(() => side.openai().chat.completions.create({ model: 'gpt-4o', messages, stream }, steering)),
      );
      assert.equal(given.class, expected);
    });
  }
}

for (const [steering, attempts] of [
  [recording('error-openai-429-rate'), 3],
  [status(500), 3],
  [recording('error-openai-404-model'), 1],
]) {
  test(`the SDK retries as often as without the proxy: ${JSON.stringify(steering.headers)}`, async () => {
    const given = await onEverySide(async (side) => {
      const before = await received();
      const client = side.openai({ maxRetries: 2 });
      const error = await raised(() => client.chat.completions.create({ model: 'gpt-4o', messages }, steering));
      return { error, attempts: (await received()) - before };
    });
    assert.equal(given.attempts, attempts);
  });
}
