"""Every test here starts real processes, and none may leave one behind."""

import pytest

from tests.e2e.conftest import supervise, warm_server

__all__ = ["supervise", "warm_server"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integrations" in item.path.parts:
            item.add_marker("processes")
