"""Every test here starts real processes, and none may leave one behind."""

import pytest

from tests.e2e.conftest import supervise

__all__ = ["supervise"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integrations" in item.path.parts:
            item.add_marker("processes")
