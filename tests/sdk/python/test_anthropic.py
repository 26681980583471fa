"""anthropic: the same objects and the same exceptions, with the credential header of either generation."""

import anthropic
import httpx2
import pytest

import mock
from compare import answer, headers, on_every_side, raised
from mock import recording

MESSAGES = [{"role": "user", "content": "Tell me a joke about OpenTelemetry"}]
WEATHER = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"location": {"type": "string"}}}}


def message(side, name, **parameters):
    create = side.anthropic().messages.with_raw_response.create
    whole = {"model": "claude-opus-4-6", "max_tokens": 1024, "messages": MESSAGES, **parameters}
    return answer(create(**whole, extra_headers=recording(name)))


@pytest.mark.parametrize("name", ["anthropic-messages-basic", "anthropic-messages-cache-read"])
def test_a_message_is_equal(name):
    given = on_every_side(lambda side: message(side, name))
    assert given["object"]["fields"]["usage"]["output_tokens"] > 0


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("anthropic-messages-stream-basic", {}),
        ("anthropic-messages-stream-cache-read", {}),
        ("anthropic-messages-stream-cache-write", {}),
        ("anthropic-messages-stream-emoji", {}),
        ("anthropic-messages-stream-thinking", {"thinking": {"type": "adaptive"}}),
        ("anthropic-messages-stream-tool-use", {"tools": [WEATHER]}),
        ("anthropic-messages-stream-web-search", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
    ],
)
def test_every_event_of_a_streamed_message_is_equal(name, parameters):
    given = on_every_side(lambda side: message(side, name, stream=True, **parameters))
    assert given["events"][-1]["fields"]["type"] == "message_stop"


def test_the_stream_helper_gathers_the_same_events_and_message():
    def case(side):
        name = recording("anthropic-messages-stream-thinking")
        whole = {"model": "claude-opus-4-6", "max_tokens": 1024, "messages": MESSAGES}
        with side.anthropic().messages.stream(**whole, extra_headers=name) as stream:
            events = [(type(event).__qualname__, event.model_dump()) for event in stream]
            return events, stream.get_final_message().model_dump(), stream.request_id

    on_every_side(case)


def test_counted_tokens_are_equal():
    def case(side):
        count = side.anthropic().messages.with_raw_response.count_tokens
        return answer(count(model="claude-opus-4-6", messages=MESSAGES, extra_headers=recording("anthropic-count-tokens")))

    assert on_every_side(case)["object"]["fields"]["input_tokens"] == 16


def test_the_header_of_the_older_sdk_gives_the_same():
    def case(side):
        given = httpx2.post(
            f"{side.anthropic_root}/v1/messages",
            headers={
                "x-api-key": side.anthropic_key,
                "anthropic-version": "2023-06-01",
                **recording("anthropic-messages-basic"),
            },
            json={"model": "claude-3-opus-20240229", "max_tokens": 1024, "messages": MESSAGES},
            trust_env=False,
        )
        return given.status_code, headers(given.headers), given.content

    assert on_every_side(case)[0] == 200


@pytest.mark.parametrize(
    ("steering", "expected"),
    [
        (recording("error-anthropic-400"), anthropic.BadRequestError),
        (recording("error-anthropic-401"), anthropic.AuthenticationError),
        (mock.status(404), anthropic.NotFoundError),
        (mock.status(429), anthropic.RateLimitError),
        (mock.status(500), anthropic.InternalServerError),
        (recording("error-anthropic-529"), "OverloadedError"),  # the package does not export it
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_providers_errors_raise_the_same(steering, expected, stream):
    def case(side):
        create = side.anthropic().messages.create
        whole = {"model": "claude-opus-4-6", "max_tokens": 1024, "messages": MESSAGES, "stream": stream}
        return raised(lambda: create(**whole, extra_headers=steering))

    name = expected if isinstance(expected, str) else expected.__name__
    assert on_every_side(case)["class"].endswith(f".{name}")


@pytest.mark.parametrize(
    ("steering", "attempts"),
    [(recording("error-anthropic-529"), 3), (recording("error-anthropic-401"), 1), (recording("error-anthropic-400"), 1)],
)
def test_the_sdk_retries_as_often_as_without_the_proxy(steering, attempts):
    def case(side):
        before = mock.received()
        create = side.anthropic(max_retries=anthropic.DEFAULT_MAX_RETRIES).messages.create
        whole = {"model": "claude-opus-4-6", "max_tokens": 1024, "messages": MESSAGES}
        error = raised(lambda: create(**whole, extra_headers=steering))
        return error, mock.received() - before

    assert on_every_side(case)[1] == attempts
