"""Fixtures that start real processes, and leave none behind."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import (
    TRAIN,
    Supervised,
    WarmTrainers,
    clean_environment,
    forked_by,
    forking_server,
    kill_all_runs,
    wait_for,
)

FREEZER = Path("/sys/fs/cgroup/freezer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker("processes")


@pytest.fixture
def supervise(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Supervised]]:
    """Start `orchestrator run` in the test's directory.

    Trainers of the test script are forked from a server, since imports of torch would take most of
    the suite's time. With ``cold`` the interpreter starts them, as it does for a user.
    """
    started: list[Supervised] = []

    def start(*script_arguments: str, cold: bool = False, **options: Any) -> Supervised:
        if not cold and "command" not in options:
            server = request.getfixturevalue("warm_server")
            options["command"] = [*forked_by(server), str(TRAIN), *script_arguments]
        started.append(Supervised(tmp_path, *script_arguments, **options))
        return started[-1]

    yield start
    kill_all_runs(started)


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, warm_server: Path
) -> Callable[..., Path]:
    """Return a function that makes the result file of an undisturbed run, once per arguments."""
    made: dict[tuple[str, ...], Path] = {}

    def get(*arguments: str) -> Path:
        if arguments not in made:
            root = tmp_path_factory.mktemp("uninterrupted")
            made[arguments] = root / "result.pt"
            result = ("--result", str(made[arguments]))
            command = [*forked_by(warm_server), str(TRAIN), *arguments, *result]
            subprocess.run(command, cwd=root, env=clean_environment(), check=True, timeout=90)
        return made[arguments]

    return get


@pytest.fixture
def warm_trainers(warm_server: Path) -> WarmTrainers:
    """Return trainers that are forked from the warm server."""
    return WarmTrainers(warm_server)


@pytest.fixture(scope="session")
def warm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the address of a process that has imported torch and forks trainers."""
    address = tmp_path_factory.mktemp("warm") / "server"
    with forking_server(address):
        yield address


@pytest.fixture
def frozen() -> Iterator[Callable[[int, bool], None]]:
    """Yield a function that freezes a process, so that SIGKILL does not end it before the thaw."""
    group = FREEZER / f"orchestrator-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs root and the freezer of control groups, version 1: {error}")

    def freeze(pid: int, is_frozen: bool) -> None:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN" if is_frozen else "THAWED")

    yield freeze
    (group / "freezer.state").write_text("THAWED")
    wait_for(lambda: not (group / "cgroup.procs").read_text(), "the end of what was frozen")
    group.rmdir()
