"""A file that appears, a command that agrees."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from orchestrator.hosts import preemption
from orchestrator.hosts.preemption import command_agrees, file_appears
from orchestrator.system.subprocesses import SubprocessRunner

SECONDS = 30.0


def run(notice: Coroutine[Any, Any, None], cause: Callable[[], object]) -> None:
    """Fail if the notice comes before its cause, or not after it."""

    async def main() -> None:
        noticed = asyncio.ensure_future(notice)
        await asyncio.sleep(0.3)  # time in which nothing may happen
        assert not noticed.done()
        cause()
        await asyncio.wait_for(noticed, SECONDS)

    asyncio.run(main())


def test_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is noticed when it is created, without anybody looking for it."""
    monkeypatch.setattr(preemption, "LOOK_SECONDS", 10 * SECONDS)
    file = tmp_path / "notice"
    run(file_appears(file), file.touch)


def test_link_as_kubernetes_changes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that appears because a link beside it is moved on is noticed."""
    monkeypatch.setattr(preemption, "LOOK_SECONDS", 10 * SECONDS)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notice").touch()
    file = tmp_path / "notice"
    file.symlink_to("..data/notice")
    run(file_appears(file), lambda: (tmp_path / "..data").symlink_to("new"))


def test_file_in_a_directory_that_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be watched, it is looked for now and then."""
    monkeypatch.setattr(preemption, "LOOK_SECONDS", 0.05)
    file = tmp_path / "later" / "notice"

    def make() -> None:
        file.parent.mkdir()
        file.touch()

    run(file_appears(file), make)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command is run again and again until it ends with 0."""
    monkeypatch.setattr(preemption, "LOOK_SECONDS", 0.05)
    file = tmp_path / "notice"
    run(command_agrees(f"[ -e {file} ]", SubprocessRunner()), file.touch)
