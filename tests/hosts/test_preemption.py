"""Preemption notices: a file that appears, a command that ends with status 0."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from orchestrator.hosts.preemption import wait_for_command, wait_for_file
from orchestrator.system.subprocesses import SubprocessRunner

DEADLINE_SECONDS = 30.0
POLL_SECONDS = 0.05
NEVER_SECONDS = 10 * DEADLINE_SECONDS


def run(notice: Coroutine[Any, Any, None], cause: Callable[[], object]) -> None:
    """Fail unless the notice comes after its cause and not before."""

    async def main() -> None:
        noticed = asyncio.ensure_future(notice)
        await asyncio.sleep(0.3)  # time in which nothing may happen
        assert not noticed.done()
        cause()
        await asyncio.wait_for(noticed, DEADLINE_SECONDS)

    asyncio.run(main())


def test_new_file_is_noticed_without_polling(tmp_path: Path) -> None:
    """The creation of the file is noticed although the next poll is far away."""
    file = tmp_path / "notice"
    run(wait_for_file(file, NEVER_SECONDS), file.touch)


def test_file_behind_a_changed_link_is_noticed(tmp_path: Path) -> None:
    """A file that appears because a link above it changes, as in Kubernetes, is noticed."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notice").touch()
    file = tmp_path / "notice"
    file.symlink_to("..data/notice")
    run(wait_for_file(file, NEVER_SECONDS), lambda: (tmp_path / "..data").symlink_to("new"))


def test_file_in_a_missing_directory_is_polled(tmp_path: Path) -> None:
    """A file in a directory that cannot be watched yet is found by polling."""
    file = tmp_path / "later" / "notice"

    def make() -> None:
        file.parent.mkdir()
        file.touch()

    run(wait_for_file(file, POLL_SECONDS), make)


def test_command_is_run_until_it_ends_with_status_0(tmp_path: Path) -> None:
    """The command is run repeatedly until it ends with status 0."""
    file = tmp_path / "notice"
    run(wait_for_command(f"[ -e {file} ]", SubprocessRunner(), POLL_SECONDS), file.touch)
