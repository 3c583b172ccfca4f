"""Every test here starts real daemons."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "hosts" in item.path.parts:
            item.add_marker("processes")
