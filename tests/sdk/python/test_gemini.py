"""google-genai: the same objects and the same exceptions, in both versions of the path."""

import pytest
from google.genai import errors, types

import mock
from compare import OF_THE_HOP, on_every_side, raised
from mock import recording


def plain(thing):
    """The SDK keeps the answer's header fields inside the object: those of the hop go, the others must be equal."""
    fields = thing.model_dump()
    held = (fields.get("sdk_http_response") or {}).get("headers") or {}
    for name in [name for name in held if name.lower() in OF_THE_HOP]:
        del held[name]
    return type(thing).__qualname__, fields


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_generated_content_is_equal(version):
    def case(side):
        client = side.gemini(api_version=version, headers=recording("gemini-generate-thinking"))
        return plain(client.models.generate_content(model="gemini-3-pro-preview", contents="How many r in strawberry?"))

    assert on_every_side(case)[1]["usage_metadata"]["thoughts_token_count"] == 1001


@pytest.mark.parametrize("name", ["gemini-stream-basic", "gemini-stream-thinking", "gemini-stream-web-search"])
@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_every_chunk_of_streamed_content_is_equal(name, version):
    def case(side):
        client = side.gemini(api_version=version, headers=recording(name))
        return [plain(chunk) for chunk in client.models.generate_content_stream(model="gemini-2.5-pro", contents="Say hi")]

    assert len(on_every_side(case)) > 1


def test_embedded_content_is_equal():
    def case(side):
        client = side.gemini(headers=recording("gemini-batch-embed"))
        config = types.EmbedContentConfig(output_dimensionality=128)
        return plain(client.models.embed_content(model="gemini-embedding-001", contents=["Hello", "World"], config=config))

    assert on_every_side(case)[1]["embeddings"]


@pytest.mark.parametrize(
    ("steering", "expected", "status"),
    [
        (mock.status(400), errors.ClientError, 400),
        (recording("error-gemini-404"), errors.ClientError, 404),
        (recording("error-gemini-429"), errors.ClientError, 429),
        (mock.status(500), errors.ServerError, 500),
    ],
)
def test_the_providers_errors_raise_the_same(steering, expected, status):
    def case(side):
        client = side.gemini(headers=steering)
        return raised(lambda: client.models.generate_content(model="gemini-2.5-flash", contents="Say hi"))

    given = on_every_side(case)
    assert (given["class"], given["code"]) == (f"google.genai.errors.{expected.__name__}", status)
