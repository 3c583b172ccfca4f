"""Fixtures for tests that start real processes, of which none may be left behind."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import Supervised, kill_all_runs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integrations" in item.path.parts:
            item.add_marker("processes")


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Start `orchestrator run` with a command in the test's directory."""
    started: list[Supervised] = []

    def start(command: list[str], **options: Any) -> Supervised:
        started.append(Supervised(tmp_path, command=command, **options))
        return started[-1]

    yield start
    kill_all_runs(started)
