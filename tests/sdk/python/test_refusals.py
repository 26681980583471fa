"""What the proxy refuses by itself raises the class an application already handles, and is not repeated in vain."""

import time

import anthropic
import openai
import pytest
from google.genai import errors

import manage
import mock
import sides
from mock import recording

pytestmark = pytest.mark.proxy

every_proxied_side = pytest.mark.parametrize("side", sides.PROXIED or [None], ids=lambda side: getattr(side, "name", "none"))
MESSAGES = [{"role": "user", "content": "Say this is a test"}]
# Of the right shape with a wrong checksum: it must get the one answer that malformed and unknown tokens get.
UNKNOWN = "sk-lp-" + "A" * 33
RETRIES = {"max_retries": 2}


def chat(side, **options):
    model = options.pop("model", "gpt-4o-mini")
    stream = options.pop("stream", False)
    with side.openai(**options) as client:
        name = recording("openai-chat-stream-usage" if stream else "openai-chat-basic")
        return client.chat.completions.create(model=model, messages=MESSAGES, stream=stream, extra_headers=name)


def message(side, **options):
    model = options.pop("model", "claude-opus-4-6")
    with side.anthropic(**options) as client:
        name = recording("anthropic-messages-basic")
        return client.messages.create(model=model, max_tokens=64, messages=MESSAGES, extra_headers=name)


def content(side, model="gemini-2.5-flash", **http_options):
    client = side.gemini(headers=recording("gemini-generate-thinking"), **http_options)
    return client.models.generate_content(model=model, contents="Say hi")


def azure_chat(side, **options):
    with side.azure(**options) as client:
        name = recording("openai-chat-basic")
        return client.chat.completions.create(model="my-deployment", messages=MESSAGES, extra_headers=name)


class Attempts:
    """Counts what the SDK sends, at the SDK: a refusal never reaches the provider, whose books would show nothing."""

    def __init__(self, client_class):
        self.sent = 0
        self.http_client = client_class(event_hooks={"request": [self._count]})

    def _count(self, request):
        self.sent += 1


def openai_refusal(call, expected, code):
    with pytest.raises(expected) as caught:
        call()
    error = caught.value
    assert error.code == code, error
    assert error.body["message"], "the message says what to do"
    assert error.request_id == error.response.headers["x-llm-proxy-request-id"]
    assert error.response.headers["content-type"].startswith("application/json")
    return error


def anthropic_refusal(call, expected, kind):
    with pytest.raises(expected) as caught:
        call()
    error = caught.value
    assert error.type == kind, error
    assert error.body["error"]["message"]
    assert error.request_id == error.response.headers["x-llm-proxy-request-id"]
    return error


def gemini_refusal(call, status, name):
    with pytest.raises(errors.ClientError) as caught:
        call()
    assert (caught.value.code, caught.value.status) == (status, name)
    assert caught.value.message
    return caught.value


@every_proxied_side
@pytest.mark.parametrize("token", [UNKNOWN, "sk-lp-short", "sk-mock-openai"])
def test_an_unknown_token_is_an_authentication_error(side, token):
    stranger = side.with_token(token)
    before = mock.received()
    error = openai_refusal(lambda: chat(stranger), openai.AuthenticationError, "invalid_api_key")
    assert error.response.headers["x-should-retry"] == "false"
    openai_refusal(lambda: chat(stranger, stream=True), openai.AuthenticationError, "invalid_api_key")
    anthropic_refusal(lambda: message(stranger), anthropic.AuthenticationError, "authentication_error")
    gemini_refusal(lambda: content(stranger), 401, "UNAUTHENTICATED")
    with pytest.raises(openai.AuthenticationError):
        azure_chat(stranger)
    assert mock.received() == before
    assert token not in str(error)


@every_proxied_side
def test_a_revoked_token_is_an_authentication_error(side):
    token = manage.new_token()
    holder = side.with_token(token["token"])
    chat(holder)
    manage.revoke(token)
    openai_refusal(lambda: chat(holder), openai.AuthenticationError, "token_revoked")
    anthropic_refusal(lambda: message(holder), anthropic.AuthenticationError, "authentication_error")
    gemini_refusal(lambda: content(holder), 401, "UNAUTHENTICATED")


@every_proxied_side
def test_a_model_outside_the_list_is_a_permission_error(side):
    allowed = ["gpt-4o-mini", "claude-opus-4-6", "gemini-2.5-flash"]
    holder = side.with_token(manage.new_token(allowed_models=allowed)["token"])
    chat(holder)
    message(holder)
    content(holder)
    openai_refusal(lambda: chat(holder, model="gpt-5.5"), openai.PermissionDeniedError, "model_not_allowed")
    anthropic_refusal(lambda: message(holder, model="claude-haiku-4-5"), anthropic.PermissionDeniedError, "permission_error")
    gemini_refusal(lambda: content(holder, model="gemini-3-pro-preview"), 403, "PERMISSION_DENIED")
    with holder.openai() as client:
        speech = ("speech.wav", b"RIFF", "audio/wav")
        transcribe = client.audio.transcriptions.create
        openai_refusal(lambda: transcribe(model="whisper-1", file=speech), openai.PermissionDeniedError, "model_not_allowed")


@every_proxied_side
def test_an_inactive_project_and_a_missing_key_are_permission_errors(side):
    project = manage.new_project(("openai", "sk-mock-openai"))
    holder = side.with_token(manage.new_token(project["id"])["token"])
    chat(holder)
    anthropic_refusal(lambda: message(holder), anthropic.PermissionDeniedError, "permission_error")
    manage.deactivate(project)
    openai_refusal(lambda: chat(holder), openai.PermissionDeniedError, "project_inactive")


@every_proxied_side
def test_a_spent_rate_is_a_rate_limit_error_that_says_when(side):
    holder = side.with_token(manage.new_token(requests_per_minute=2)["token"])
    chat(holder)
    chat(holder)
    error = openai_refusal(lambda: chat(holder), openai.RateLimitError, "rate_limit_exceeded")
    assert 0 < float(error.response.headers["retry-after"]) <= 60
    assert error.response.headers["x-ratelimit-limit-requests"] == "2"
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert error.response.headers["x-ratelimit-reset-requests"]
    assert error.response.headers.get("x-should-retry") != "false"
    anthropic_refusal(lambda: message(holder), anthropic.RateLimitError, "rate_limit_error")
    gemini_refusal(lambda: content(holder), 429, "RESOURCE_EXHAUSTED")


@every_proxied_side
def test_a_spent_quota_is_a_rate_limit_error_that_is_not_repeated(side):
    holder = side.with_token(manage.new_token(max_requests=1)["token"])
    chat(holder)
    before = mock.received()

    attempts = Attempts(openai.DefaultHttpxClient)
    refused = lambda: chat(holder, http_client=attempts.http_client, **RETRIES)  # noqa: E731
    error = openai_refusal(refused, openai.RateLimitError, "insufficient_quota")
    assert error.type == "insufficient_quota"
    assert error.response.headers["x-should-retry"] == "false"
    assert attempts.sent == 1

    attempts = Attempts(anthropic.DefaultHttpxClient)
    refused = lambda: message(holder, http_client=attempts.http_client, **RETRIES)  # noqa: E731
    error = anthropic_refusal(refused, anthropic.RateLimitError, "rate_limit_error")
    assert error.response.headers["x-should-retry"] == "false"
    assert attempts.sent == 1
    assert mock.received() == before


@every_proxied_side
@pytest.mark.parametrize(
    ("dialect", "base"),
    [("openai", openai.APIError), ("anthropic", anthropic.APIError)],
)
def test_revoking_ends_a_running_stream_with_an_error(side, dialect, base):
    token = manage.new_token()
    holder = side.with_token(token["token"])
    if dialect == "openai":
        steering = {**recording("openai-responses-stream-long-reasoning"), "x-mock-pace-ms": "200"}
        create = holder.openai().responses.create
        stream = create(model="o3-mini", input="Say hi", stream=True, extra_headers=steering)
    else:
        steering = {**recording("anthropic-messages-stream-basic"), "x-mock-pace-ms": "200"}
        create = holder.anthropic().messages.create
        whole = {"model": "claude-opus-4-6", "max_tokens": 64, "messages": MESSAGES}
        stream = create(**whole, stream=True, extra_headers=steering)
    next(iter(stream))
    manage.revoke(token)
    revoked = time.monotonic()
    with pytest.raises(base) as caught:
        for _ in stream:
            assert time.monotonic() - revoked < 2.0, "the stream goes on"
    assert caught.value.body, "the dialect's error event came before the end"


@every_proxied_side
def test_an_unreachable_answer_is_an_internal_server_error(side):
    with side.openai() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, extra_headers={"x-mock-fault": "garbage"})
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_invalid")


@every_proxied_side
def test_the_proxy_names_its_record_on_every_answer(side):
    raw = side.openai().models.with_raw_response.list()
    assert raw.headers["x-llm-proxy-request-id"]
