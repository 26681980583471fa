"""openai: the same objects and the same exceptions."""

import openai
import pytest

import mock
from compare import answer, headers, on_every_side, plain, raised
from mock import recording

MESSAGES = [{"role": "user", "content": "Say this is a test"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}


def chat(side, name, **parameters):
    create = side.openai().chat.completions.with_raw_response.create
    return answer(create(**{"model": "gpt-4o-mini", "messages": MESSAGES, **parameters}, extra_headers=recording(name)))


@pytest.mark.parametrize(
    "name",
    [
        "openai-chat-basic",
        "openai-chat-cached-prompt",
        "openai-chat-japanese",
        "openai-chat-o3-reasoning",
        "openai-chat-audio-input",
    ],
)
def test_a_chat_completion_is_equal(name):
    given = on_every_side(lambda side: chat(side, name))
    assert given["object"]["fields"]["usage"]["total_tokens"] > 0


def test_tool_calls_are_equal():
    given = on_every_side(lambda side: chat(side, "openai-chat-tool-calls", tools=[WEATHER], tool_choice="auto"))
    assert len(given["object"]["fields"]["choices"][0]["message"]["tool_calls"]) == 2


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("openai-chat-stream-no-usage", {}),
        ("openai-chat-stream-usage", {"stream_options": {"include_usage": True}}),
        ("openai-chat-stream-tool-calls", {"tools": [WEATHER], "stream_options": {"include_usage": True}}),
        ("openai-chat-stream-n-choices", {"n": 2, "stream_options": {"include_usage": True}}),
        ("synthetic-chat-stream-multilingual", {"stream_options": {"include_usage": True}}),
        ("mistral-chat-stream", {}),
        ("groq-chat-stream", {}),
        ("deepseek-chat-stream-reasoning", {}),
    ],
)
def test_every_chunk_of_a_streamed_chat_completion_is_equal(name, parameters):
    given = on_every_side(lambda side: chat(side, name, stream=True, **parameters))
    assert len(given["events"]) > 1
    asked_for_usage = "stream_options" in parameters
    if name.startswith("openai"):
        assert any(event["fields"]["usage"] for event in given["events"]) == asked_for_usage


@pytest.mark.parametrize("split", ["1", "random:7"])
def test_chunks_are_equal_however_the_bytes_are_split(split):
    def case(side):
        create = side.openai(default_headers={"x-mock-split": split}).chat.completions.with_raw_response.create
        name = "synthetic-chat-stream-multilingual"
        return answer(create(model="gpt-4o-mini", messages=MESSAGES, stream=True, extra_headers=recording(name)))

    on_every_side(case)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("name", ["openai-chat-basic", "openai-chat-stream-usage"])
def test_coded_answers_are_equal(coding, name):
    def case(side):
        create = side.openai(default_headers={"x-mock-encoding": coding}).chat.completions.with_raw_response.create
        return answer(create(model="gpt-4o-mini", messages=MESSAGES, stream="stream" in name, extra_headers=recording(name)))

    given = on_every_side(case)
    assert ("content-encoding", coding) in given["headers"]


def test_the_stream_helper_gathers_the_same_events_and_completion():
    def case(side):
        name = recording("openai-chat-stream-tool-calls")
        with side.openai().chat.completions.stream(model="gpt-4o", messages=MESSAGES, extra_headers=name) as stream:
            events = [(type(event).__qualname__, event.model_dump()) for event in stream]
            return events, stream.get_final_completion().model_dump()

    on_every_side(case)


def test_a_response_is_equal():
    def case(side):
        create = side.openai().responses.with_raw_response.create
        return answer(create(model="gpt-5.5", input="Say hi", extra_headers=recording("openai-responses-basic")))

    assert on_every_side(case)["object"]["fields"]["status"] == "completed"


@pytest.mark.parametrize(
    "name",
    [
        "openai-responses-stream-basic",
        "openai-responses-stream-tool",
        "openai-responses-stream-web-search",
        "openai-responses-stream-long-reasoning",
    ],
)
def test_every_event_of_a_streamed_response_is_equal(name):
    def case(side):
        create = side.openai().responses.with_raw_response.create
        return answer(create(model="gpt-5.5", input="Say hi", stream=True, extra_headers=recording(name)))

    assert on_every_side(case)["events"][-1]["fields"]["type"] == "response.completed"


def test_a_response_that_fails_in_its_stream_is_equal():
    def case(side):
        events = []

        def read():
            stream = side.openai().responses.create(
                model="gpt-5-nano", input="Say hi", stream=True, extra_headers=recording("openai-responses-stream-failed")
            )
            events.extend(plain(event) for event in stream)
            raise StopIteration  # this version hands the error out as an event; then the events are what must be equal

        return raised(read), events

    on_every_side(case)


@pytest.mark.parametrize("name", ["groq-chat-stream-error-event", "openrouter-stream-error"])
def test_an_error_in_a_stream_raises_the_same_after_the_same_chunks(name):
    def case(side):
        chunks = []

        def read():
            stream = side.openai().chat.completions.create(
                model="gpt-4o-mini", messages=MESSAGES, stream=True, extra_headers=recording(name)
            )
            chunks.extend(plain(chunk) for chunk in stream)

        return raised(read), chunks

    assert on_every_side(case)[0]["class"] == "openai.APIError"


def test_a_streamed_legacy_completion_is_equal():
    def case(side):
        create = side.openai().completions.with_raw_response.create
        name = recording("openai-completions-stream")
        return answer(create(model="davinci-002", prompt="Tell me a joke", stream=True, extra_headers=name))

    assert len(on_every_side(case)["events"]) > 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("openai-embeddings", {}),  # the SDK asks for base64 by itself and decodes it
        ("openai-embeddings-batch", {"encoding_format": "float"}),
    ],
)
def test_embeddings_are_equal(name, parameters):
    def case(side):
        create = side.openai().embeddings.with_raw_response.create
        return answer(create(model="text-embedding-ada-002", input="Tell me a joke", extra_headers=recording(name), **parameters))

    vector = on_every_side(case)["object"]["fields"]["data"][0]["embedding"]
    assert all(isinstance(number, float) for number in vector)


def test_a_moderation_is_equal():
    on_every_side(lambda side: answer(side.openai().moderations.with_raw_response.create(input="Tell me a joke")))


def test_an_image_is_equal():
    create = {"model": "gpt-image-1", "prompt": "a lighthouse"}
    on_every_side(lambda side: answer(side.openai().images.with_raw_response.generate(**create)))


def test_a_transcription_is_equal():
    def case(side):
        create = side.openai().audio.transcriptions.with_raw_response.create
        return answer(create(model="gpt-4o-transcribe", file=("speech.wav", bytes(range(256)) * 512, "audio/wav")))

    assert on_every_side(case)["object"]["fields"]["text"]


def test_speech_is_the_same_bytes():
    def case(side):
        spoken = side.openai().audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="Say this is a test")
        return headers(spoken.response.headers), spoken.content

    assert on_every_side(case)[1]


def test_models_are_equal():
    listed = on_every_side(lambda side: answer(side.openai().models.with_raw_response.list()))
    first = listed["object"]["fields"]["data"][0]["id"]
    on_every_side(lambda side: answer(side.openai().models.with_raw_response.retrieve(first)))


def test_an_uploaded_file_is_equal():
    lines = b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n' * 4096

    def case(side):
        create = side.openai().files.with_raw_response.create
        return answer(create(file=("batch.jsonl", lines, "application/jsonl"), purpose="batch"))

    assert on_every_side(case)["object"]["fields"]["object"] == "file"


@pytest.mark.parametrize(
    ("steering", "expected"),
    [
        (mock.status(400), openai.BadRequestError),
        (recording("error-openai-401"), openai.AuthenticationError),
        (recording("error-openai-404-model"), openai.NotFoundError),
        (recording("error-openai-429-rate"), openai.RateLimitError),
        (mock.status(429), openai.RateLimitError),
        (mock.status(500), openai.InternalServerError),
        (mock.status(529), openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_providers_errors_raise_the_same(steering, expected, stream):
    def case(side):
        create = side.openai().chat.completions.create
        return raised(lambda: create(model="gpt-4o", messages=MESSAGES, stream=stream, extra_headers=steering))

    assert on_every_side(case)["class"] == f"openai.{expected.__name__}"


@pytest.mark.parametrize(
    ("steering", "attempts"),
    [
        (recording("error-openai-429-rate"), 3),
        (mock.status(500), 3),
        (recording("error-openai-404-model"), 1),
    ],
)
def test_the_sdk_retries_as_often_as_without_the_proxy(steering, attempts):
    def case(side):
        before = mock.received()
        create = side.openai(max_retries=openai.DEFAULT_MAX_RETRIES).chat.completions.create
        error = raised(lambda: create(model="gpt-4o", messages=MESSAGES, extra_headers=steering))
        return error, mock.received() - before

    assert on_every_side(case)[1] == attempts
