"""openai's Azure client: the deployment stands in the path, the version in the query."""

import openai

from compare import answer, on_every_side, raised
from mock import recording

MESSAGES = [{"role": "user", "content": "Tell me a joke"}]


def test_a_chat_completion_is_equal():
    def case(side):
        create = side.azure().chat.completions.with_raw_response.create
        return answer(create(model="my-deployment", messages=MESSAGES, extra_headers=recording("openai-chat-basic")))

    on_every_side(case)


def test_every_chunk_of_a_streamed_chat_completion_is_equal():
    def case(side):
        create = side.azure().chat.completions.with_raw_response.create
        return answer(create(model="my-deployment", messages=MESSAGES, stream=True, extra_headers=recording("azure-chat-stream")))

    first = on_every_side(case)["events"][0]["fields"]
    assert first["choices"] == [] and first["prompt_filter_results"]


def test_the_providers_401_raises_the_same():
    def case(side):
        create = side.azure().embeddings.create
        return raised(lambda: create(model="my-deployment", input="Hello", extra_headers=recording("error-azure-401")))

    given = on_every_side(case)
    assert (given["class"], given["code"]) == (f"openai.{openai.AuthenticationError.__name__}", "401")
