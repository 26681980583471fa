"""The mock provider, as seen from the tests: how to steer it by header, and what its books say."""

import contextlib
import json
import os
import pathlib
import time
import urllib.request

from sides import MOCK_URL

RECORDINGS = pathlib.Path(os.environ["RECORDINGS"])
WAIT_SECONDS = 5.0
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def recording(name):
    return {"x-mock-recording": name}


def status(code):
    return {"x-mock-status": str(code)}


def recorded_bytes(name):
    """The length of a recorded body."""
    for ending in (".sse", ".json"):
        path = RECORDINGS / f"{name}{ending}"
        if path.exists():
            return path.stat().st_size
    raise FileNotFoundError(name)


def books(path):
    with OPENER.open(f"{MOCK_URL}/__mock/{path}", timeout=10) as answer:
        return json.load(answer)


def received():
    """How many requests have reached the provider since it started."""
    return books("stats")["requests"]


class Seen:
    """What the books say about the requests since `watch` began."""

    def __init__(self):
        self.before = received()

    def only(self, is_ready):
        """The one request, as soon as `is_ready` says so of it."""
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            if (count := received() - self.before) > 0:
                assert count == 1, f"{count} requests reached the provider instead of one"
                entry = Entry(books("requests?last=1")[-1])
                if is_ready(entry):
                    return entry
            time.sleep(0.005)
        raise AssertionError(f"the provider's books did not get there within {WAIT_SECONDS} s")

    def finished(self):
        """When the provider had written the answer whole, in seconds since the epoch."""
        return self.only(lambda entry: entry.finished is not None).finished

    def closed_by_client(self):
        """When the provider saw its client go, in seconds since the epoch."""
        return self.only(lambda entry: entry.client_closed is not None).client_closed


class Entry:
    """One request in the books; times in seconds since the epoch, `None` for what has not happened or is no WebSocket."""

    def __init__(self, fields):
        self.finished = seconds(fields["finished_ms"])
        self.client_closed = seconds(fields["client_closed_at_ms"])
        self.socket = fields["socket"]


def seconds(milliseconds):
    return None if milliseconds is None else milliseconds / 1000


@contextlib.contextmanager
def watch():
    """The requests of a `with` block; one at a time, since nothing else tells whose they are."""
    yield Seen()
