"""The ways from an SDK to the provider: direct, through the proxy's bare host, and through its named prefixes.

A side differs in base URL and API key only, because that is all a user changes. Retries are off unless a test asks: a retried
failure takes seconds and hides which answer raised.
"""

import dataclasses
import os

import anthropic
import google.genai
import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

MOCK_URL = os.environ["MOCK_URL"]
PROXY_URL = os.environ.get("PROXY_URL")

TIMEOUT_SECONDS = 20.0
GEMINI_API_VERSION = "v1beta"
AZURE_API_VERSION = "2024-10-21"


@dataclasses.dataclass(frozen=True)
class Side:
    name: str
    openai_root: str
    anthropic_root: str
    gemini_root: str
    azure_root: str
    openai_key: str
    anthropic_key: str
    gemini_key: str
    azure_key: str

    def with_token(self, token):
        """The same way, as the holder of another proxy token."""
        return dataclasses.replace(self, openai_key=token, anthropic_key=token, gemini_key=token, azure_key=token)

    def openai(self, **options):
        return openai.OpenAI(**self._openai(options))

    def async_openai(self, **options):
        return openai.AsyncOpenAI(**self._openai(options))

    def anthropic(self, **options):
        return anthropic.Anthropic(**self._anthropic(options))

    def async_anthropic(self, **options):
        return anthropic.AsyncAnthropic(**self._anthropic(options))

    def azure(self, **options):
        base = {"azure_endpoint": self.azure_root, "api_key": self.azure_key, "api_version": AZURE_API_VERSION}
        return openai.AzureOpenAI(**base, **patient(options))

    def gemini(self, **http_options):
        """`http_options` may hold `headers`, `timeout` in milliseconds (as this SDK counts) and `api_version`."""
        options = {"base_url": self.gemini_root, "api_version": GEMINI_API_VERSION, "timeout": int(TIMEOUT_SECONDS * 1000)}
        return google.genai.Client(api_key=self.gemini_key, http_options={**options, **http_options})

    def chat_openai(self, **options):
        return ChatOpenAI(model="gpt-4o-mini", **self._openai(options))

    def openai_embeddings(self, **options):
        return OpenAIEmbeddings(model="text-embedding-ada-002", **self._openai(options))

    def _openai(self, options):
        return {"base_url": f"{self.openai_root}/v1", "api_key": self.openai_key, **patient(options)}

    def _anthropic(self, options):
        return {"base_url": self.anthropic_root, "api_key": self.anthropic_key, **patient(options)}


def patient(options):
    return {"max_retries": 0, "timeout": TIMEOUT_SECONDS, **options}


DIRECT = Side("direct", MOCK_URL, MOCK_URL, MOCK_URL, MOCK_URL, "sk-mock-openai", "sk-mock-anthropic", "mock-gemini", "mock-azure")


def proxied():
    if not PROXY_URL:
        return []
    token = os.environ["PROXY_TOKEN"]
    return [
        Side("bare host", PROXY_URL, PROXY_URL, PROXY_URL, PROXY_URL, token, token, token, token),
        Side(
            "prefixes",
            f"{PROXY_URL}/openai",
            f"{PROXY_URL}/anthropic",
            f"{PROXY_URL}/gemini",
            f"{PROXY_URL}/azure",
            token,
            token,
            token,
            token,
        ),
    ]


PROXIED = proxied()
EVERY = [DIRECT, *PROXIED]
