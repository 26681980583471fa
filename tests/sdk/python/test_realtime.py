"""Realtime: the same events over a WebSocket, the same ends, and the same refusals before it opens."""

import asyncio
import json
import time

import pytest
from google.genai import live
from websockets.asyncio.client import connect as connect_plainly
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

import manage
import mock
import sides
from compare import OF_THE_HOP, on_every_side, plain
from mock import recording

MODEL = "gpt-realtime"
UPDATE = {"type": "realtime", "instructions": "Answer in two words.", "audio": {"output": {"voice": "ash"}}}
QUESTION = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say hi"}]}

every_proxied_side = pytest.mark.parametrize("side", sides.PROXIED or [None], ids=lambda side: getattr(side, "name", "none"))


def openai_socket(side, model=MODEL, **steering):
    headers = {f"x-mock-{name}": value for name, value in steering.items()}
    return side.openai().realtime.connect(model=model, extra_headers=headers)


def azure_socket(side):
    # Without this option the client speaks TLS to whatever address it is given.
    base = side.azure_root.replace("http", "ws", 1)
    return side.azure(websocket_base_url=f"{base}/openai").realtime.connect(model=MODEL)


def until(connection, kind):
    """All events up to the next one of this type."""
    events = [connection.recv()]
    while events[-1].type != kind:
        events.append(connection.recv())
    return events


def conversation(connection):
    """A whole session as an application has it: every event in its order."""
    events = until(connection, "session.created")
    connection.session.update(session=UPDATE)
    events += until(connection, "session.updated")
    connection.conversation.item.create(item=QUESTION)
    events += until(connection, "conversation.item.done")
    for _ in range(2):
        connection.response.create()
        events += until(connection, "response.done")
    return [plain(event) for event in events]


def ended(connection):
    """How the other side ended the session."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            connection.recv()
    return type(caught.value).__qualname__, caught.value.rcvd.code, caught.value.rcvd.reason


def refused(connect):
    """The answer to a handshake that opens no socket."""
    with pytest.raises(InvalidStatus) as caught:
        connect()
    answer = caught.value.response
    fields = sorted((name.lower(), value) for name, value in answer.headers.raw_items() if name.lower() not in OF_THE_HOP)
    return answer.status_code, fields, answer.body


@pytest.mark.parametrize("open_socket", [openai_socket, azure_socket], ids=lambda socket: socket.__name__)
def test_every_event_of_a_session_is_equal(open_socket):
    def case(side):
        with open_socket(side) as connection:
            return conversation(connection)

    events = on_every_side(case)
    session, last = events[0]["fields"]["session"], events[-1]["fields"]["response"]
    assert (session["model"], last["status"], last["usage"]["total_tokens"]) == (MODEL, "completed", 49)


def test_every_event_of_a_session_of_the_async_client_is_equal():
    async def session(side):
        async with side.async_openai() as client, client.realtime.connect(model=MODEL) as connection:
            await connection.response.create()
            events = []
            async for event in connection:
                events.append(plain(event))
                if event.type == "response.done":
                    return events

    assert len(on_every_side(lambda side: asyncio.run(session(side)))) > 5


@pytest.mark.parametrize(
    ("talk", "expected"),
    [("close:1000", ("ConnectionClosedOK", 1000, "")), ("close:4001:enough", ("ConnectionClosedError", 4001, "enough"))],
)
def test_the_provider_ends_a_session_with_the_same_words(talk, expected):
    def case(side):
        with openai_socket(side, socket=talk) as connection:
            return ended(connection)

    assert on_every_side(case) == expected


def test_the_provider_gets_the_words_with_which_the_app_ends_a_session():
    def case(side):
        with mock.watch() as seen:
            with openai_socket(side) as connection:
                until(connection, "session.created")
                connection.close(code=4002, reason="seen enough")
        socket = seen.only(lambda entry: entry.finished is not None).socket
        return socket["close_code"], socket["close_reason"], socket["messages"]

    assert on_every_side(case) == (4002, "seen enough", 0)


@pytest.mark.parametrize("talk", ["cut", "cut-frame", "reset"])
def test_a_broken_session_raises_after_the_events_that_came(talk):
    def case(side):
        with openai_socket(side, socket=talk) as connection:
            created = plain(connection.recv())
            with pytest.raises(ConnectionClosedError):
                connection.recv()
            return created

    assert on_every_side(case)["fields"]["type"] == "session.created"


@pytest.mark.parametrize(
    ("steering", "status"),
    [({"recording": "error-openai-429-rate"}, 429), ({"recording": "error-openai-401"}, 401), ({"status": "403"}, 403)],
)
def test_a_handshake_that_the_provider_refuses_raises_the_same(steering, status):
    given = on_every_side(lambda side: refused(lambda: openai_socket(side, **steering).enter()))
    assert (given[0], bool(json.loads(given[2])["error"]["message"])) == (status, True)


@pytest.fixture
def sockets_without_tls(monkeypatch):
    """google-genai speaks TLS to whatever address it is given, and there is none here: only the scheme is changed."""

    def connect(address, ssl=None, **options):
        return connect_plainly(address.replace("wss:", "ws:", 1), **options)

    monkeypatch.setattr(live, "ws_connect", connect)


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_every_message_of_a_gemini_session_is_equal(sockets_without_tls, version):
    async def session(side):
        config = {"response_modalities": ["TEXT"]}
        client = side.gemini(api_version=version)
        async with client.aio.live.connect(model="gemini-2.5-flash-live", config=config) as connection:
            messages = []
            for words in ("one", "two"):
                turn = {"role": "user", "parts": [{"text": words}]}
                await connection.send_client_content(turns=turn, turn_complete=True)
                messages += [plain(message) async for message in connection.receive()]
            return messages

    messages = on_every_side(lambda side: asyncio.run(session(side)))
    assert [part["fields"]["usage_metadata"] is not None for part in messages].count(True) == 2
    assert messages[-1]["fields"]["usage_metadata"]["total_token_count"] == 30


@pytest.mark.proxy
@every_proxied_side
def test_the_proxy_refuses_a_handshake_in_openais_json(side):
    revoked = manage.new_token()
    manage.revoke(revoked)
    mini = manage.new_token(allowed_models=["gpt-realtime-mini"])
    spent = manage.new_token(max_requests=1)
    with openai_socket(side.with_token(spent["token"])) as connection:
        until(connection, "session.created")
    before = mock.received()
    for token, status, code in [
        ("sk-lp-" + "A" * 33, 401, "invalid_api_key"),
        (revoked["token"], 401, "token_revoked"),
        (mini["token"], 403, "model_not_allowed"),
        (spent["token"], 429, "insufficient_quota"),
    ]:
        given, _, body = refused(lambda: openai_socket(side.with_token(token)).enter())  # noqa: B023 (called at once)
        assert (given, json.loads(body)["error"]["code"]) == (status, code)
        assert token not in body.decode()
    assert mock.received() == before


@pytest.mark.proxy
@every_proxied_side
def test_the_proxy_ends_a_session_with_the_reason(side):
    token = manage.new_token(allowed_models=[MODEL])
    holder = side.with_token(token["token"])
    with openai_socket(holder) as connection:
        until(connection, "session.created")
        connection.session.update(session={"type": "realtime", "model": "gpt-realtime-2"})
        assert ended(connection) == ("ConnectionClosedError", 1008, "model_not_allowed")

    with openai_socket(holder) as connection:
        until(connection, "session.created")
        manage.revoke(token)
        revoked = time.monotonic()
        assert ended(connection) == ("ConnectionClosedError", 1008, "token_revoked")
        assert time.monotonic() - revoked < 2.0
