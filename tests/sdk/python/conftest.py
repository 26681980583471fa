"""Lets pytest explain the comparisons that live in the helper modules too, and skips what needs the proxy when there is none."""

import pytest

pytest.register_assert_rewrite("compare", "sides", "mock", "manage")

import sides  # noqa: E402  (must come after the line above, or its assertions stay bare)


def pytest_configure(config):
    config.addinivalue_line("markers", "proxy: is about the proxy itself, so it has no direct half")


def pytest_collection_modifyitems(items):
    if sides.PROXIED:
        return
    skip = pytest.mark.skip(reason="--direct-only")
    for item in items:
        if item.get_closest_marker("proxy"):
            item.add_marker(skip)
