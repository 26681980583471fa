"""langchain-openai: the same messages. With a base URL of its own it does not ask for usage in streams, and must not be helped."""

from compare import on_every_side, raised
from mock import recording

QUESTION = "Say this is a test"


def plain(message):
    """A message without the run id that LangChain draws for each call."""
    fields = message.model_dump()
    if str(fields.get("id", "")).startswith(("run-", "lc_run-")):
        del fields["id"]
    return type(message).__qualname__, fields


def test_a_message_is_equal():
    def case(side):
        model = side.chat_openai(default_headers=recording("openai-chat-basic"), include_response_headers=False)
        return plain(model.invoke(QUESTION))

    assert on_every_side(case)[1]["usage_metadata"]["total_tokens"] == 17


def test_tool_calls_are_equal():
    def get_current_weather(location: str) -> str:
        """The weather at a place."""

    def case(side):
        model = side.chat_openai(default_headers=recording("openai-chat-tool-calls"))
        return plain(model.bind_tools([get_current_weather]).invoke(QUESTION))

    assert len(on_every_side(case)[1]["tool_calls"]) == 2


def test_streamed_chunks_are_equal():
    def case(side):
        model = side.chat_openai(default_headers=recording("openai-chat-stream-no-usage"))
        return [plain(chunk) for chunk in model.stream(QUESTION)]

    assert not any(chunk[1]["usage_metadata"] for chunk in on_every_side(case))


def test_streamed_chunks_with_usage_are_equal():
    def case(side):
        model = side.chat_openai(default_headers=recording("openai-chat-stream-usage"), stream_usage=True)
        return [plain(chunk) for chunk in model.stream(QUESTION)]

    assert any(chunk[1]["usage_metadata"] for chunk in on_every_side(case))


def test_embeddings_are_equal():
    def case(side):
        # Checking the context length would load a tokenizer over the network.
        model = side.openai_embeddings(default_headers=recording("openai-embeddings"), check_embedding_ctx_length=False)
        return model.embed_query("Tell me a joke")

    assert len(on_every_side(case)) > 0


def test_the_providers_error_raises_the_same():
    def case(side):
        model = side.chat_openai(default_headers=recording("error-openai-429-rate"))
        return raised(lambda: model.invoke(QUESTION))

    assert on_every_side(case)["code"] == "rate_limit_exceeded"
