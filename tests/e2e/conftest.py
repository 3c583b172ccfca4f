"""Every test here starts real processes, and none may leave one behind."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import Supervised, kill_leftovers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker("processes")


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Start `orchestrator run` in the test's directory."""
    started: list[Supervised] = []

    def start(*script_arguments: str, **options: Any) -> Supervised:
        started.append(Supervised(tmp_path, *script_arguments, **options))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()
        kill_leftovers(run.run)
