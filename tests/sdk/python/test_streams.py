"""Streams in time: chunks arrive as they are sent, an abort reaches the provider, a broken answer never passes as whole.

Times of the client and of the mock provider come from the same machine's clock, so they can be compared.
"""

import asyncio
import itertools
import time

import anthropic
import httpx
import httpx2
import openai
import pytest
from google.genai import errors

import mock
from compare import class_raised
from mock import recording
from sides import EVERY

MESSAGES = [{"role": "user", "content": "Tell me a joke"}]
ABORT_SECONDS = 0.100
ABORTS = 5


def check_prompt(delays):
    """The promise is for 99 of 100: a busy machine may make one of so few late."""
    assert sorted(delays)[-2] <= ABORT_SECONDS, delays

every_side = pytest.mark.parametrize("side", EVERY, ids=lambda side: side.name)


def openai_chat(side, **options):
    options.setdefault("extra_headers", recording("openai-chat-stream-usage"))
    return side.openai().chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True, **options)


def openai_responses(side, **options):
    options.setdefault("extra_headers", recording("openai-responses-stream-basic"))
    return side.openai().responses.create(model="gpt-5.5", input="Say hi", stream=True, **options)


def anthropic_messages(side, **options):
    options.setdefault("extra_headers", recording("anthropic-messages-stream-basic"))
    return side.anthropic().messages.create(
        model="claude-opus-4-6", max_tokens=1024, messages=MESSAGES, stream=True, **options
    )


def azure_chat(side, **options):
    options.setdefault("extra_headers", recording("azure-chat-stream"))
    return side.azure().chat.completions.create(model="my-deployment", messages=MESSAGES, stream=True, **options)


def gemini_content(side, extra_headers=None):
    # A generator, so that the client lives as long as the stream: without it this SDK closes the connection.
    client = side.gemini(headers=extra_headers or recording("gemini-stream-thinking"))
    yield from client.models.generate_content_stream(model="gemini-2.5-pro", contents="Say hi")


def langchain_chat(side, extra_headers=None):
    model = side.chat_openai(default_headers=extra_headers or recording("openai-chat-stream-usage"))
    return model.stream("Tell me a joke")


STREAMS = {
    openai_chat: "openai-chat-stream-usage",
    openai_responses: "openai-responses-stream-basic",
    anthropic_messages: "anthropic-messages-stream-basic",
    azure_chat: "azure-chat-stream",
    gemini_content: "gemini-stream-thinking",
    langchain_chat: "openai-chat-stream-usage",
}
every_stream = pytest.mark.parametrize("open_stream", STREAMS, ids=lambda stream: stream.__name__)
CLOSABLE = [openai_chat, openai_responses, anthropic_messages, azure_chat]


@every_side
@every_stream
def test_the_first_chunk_arrives_before_the_last_is_sent(side, open_stream):
    with mock.watch() as seen:
        stream = open_stream(side, extra_headers={**recording(STREAMS[open_stream]), "x-mock-pace-ms": "50"})
        arrivals = [time.time() for _ in stream]
    finished = seen.finished()
    assert arrivals[0] < finished
    # Not the first alone: a relay that passes one piece and then gathers the rest would have passed that.
    assert arrivals[len(arrivals) // 2 - 1] < finished


@every_side
@pytest.mark.parametrize("open_stream", CLOSABLE, ids=lambda stream: stream.__name__)
@pytest.mark.parametrize("pace_ms", [20, 400], ids=["while chunks flow", "while the provider is silent"])
def test_closing_a_stream_reaches_the_provider(side, open_stream, pace_ms):
    delays = []
    for _ in range(ABORTS):
        with mock.watch() as seen:
            stream = open_stream(side, extra_headers={**recording(STREAMS[open_stream]), "x-mock-pace-ms": str(pace_ms)})
            list(itertools.islice(stream, 1))
            aborted = time.time()
            stream.close()
            closed = seen.closed_by_client()
        delays.append(closed - aborted)
    check_prompt(delays)


@every_side
@pytest.mark.parametrize("ask", [openai_chat, anthropic_messages], ids=lambda stream: stream.__name__)
def test_a_timeout_before_the_first_byte_reaches_the_provider(side, ask):
    expected = (openai.APITimeoutError, anthropic.APITimeoutError)
    delays = []
    for _ in range(ABORTS):
        with mock.watch() as seen:
            with pytest.raises(expected):
                ask(side, extra_headers={"x-mock-fault": "hang-head"}, timeout=0.3)
            aborted = time.time()
            closed = seen.closed_by_client()
        delays.append(closed - aborted)
    check_prompt(delays)


@every_side
@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_task_reaches_the_provider_before_the_first_byte(side, stream):
    async def cancelled_at(call):
        task = asyncio.create_task(call)
        await asyncio.sleep(0.2)
        aborted = time.time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return aborted

    async def ask():
        async with side.async_openai() as client:
            hang = {"x-mock-fault": "hang-head"}
            create = client.chat.completions.create
            return await cancelled_at(create(model="gpt-4o-mini", messages=MESSAGES, stream=stream, extra_headers=hang))

    delays = []
    for _ in range(ABORTS):
        with mock.watch() as seen:
            aborted = asyncio.run(ask())
            closed = seen.closed_by_client()
        delays.append(closed - aborted)
    check_prompt(delays)


BROKEN = (
    # What the SDKs raise when the connection breaks, and when an error event came before it did.
    httpx.TransportError,
    httpx2.TransportError,
    openai.APIError,
    anthropic.APIError,
    errors.APIError,
)


@every_side
@every_stream
@pytest.mark.parametrize("fault", ["cut", "reset"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_broken_stream_raises_after_the_chunks_that_came(side, open_stream, fault, share):
    name = STREAMS[open_stream]
    whole = mock.recorded_bytes(name)
    chunks = []

    def read():
        steering = {**recording(name), "x-mock-fault": f"{fault}:{int(whole * share)}"}
        for chunk in open_stream(side, extra_headers=steering):
            chunks.append(chunk)

    assert issubclass(class_raised(read), BROKEN)
    if fault == "cut":  # a reset may overtake what was sent before it
        assert chunks


@every_side
@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_broken_answer_raises(side, fault):
    name = "openai-chat-basic"
    steering = {**recording(name), "x-mock-fault": f"{fault}:{mock.recorded_bytes(name) // 2}"}
    create = side.openai().chat.completions.create
    assert issubclass(class_raised(lambda: create(model="gpt-4o-mini", messages=MESSAGES, extra_headers=steering)), BROKEN)
