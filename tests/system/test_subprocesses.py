"""Commands that run beside the event loop."""

import asyncio
import os
import time
from pathlib import Path

from orchestrator.system import process_tree
from orchestrator.system.process_tree import Process
from orchestrator.system.subprocesses import CommandResult, SubprocessRunner
from tests.support import wait_until


def run(*words: str, seconds: float = 30.0, **variables: str) -> CommandResult:
    return asyncio.run(SubprocessRunner().run(words, seconds, variables))


def test_command_returns_status_output_and_errors() -> None:
    """The result has the status, the output and the errors of a command with extra variables."""
    answer = run("sh", "-c", 'echo "$A"; echo no >&2; exit 3', A="yes")
    assert answer == CommandResult(3, "yes\n", "no")


def test_missing_command_is_reported() -> None:
    """A missing command gives a result without a status that names the problem."""
    assert run("no-such-program") == CommandResult(
        None, problem="cannot run no-such-program: No such file or directory"
    )


def test_command_that_times_out_is_killed_with_its_children(tmp_path: Path) -> None:
    """A command that takes too long is killed with its children, even if they hold its output."""
    answer = run("sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/child; wait", seconds=1.0)
    assert answer == CommandResult(None, problem="no answer within 1 s")
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: (look := Process.read(child)) is None or look.is_dead, "the child's end")


def test_running_command_is_not_reaped_by_other_code() -> None:
    """A command is in ``running`` before other code can reap it."""

    async def main() -> CommandResult:
        tools = SubprocessRunner()
        asking = asyncio.ensure_future(tools.run(("sh", "-c", "exit 5"), 30.0, {}))
        while not tools.running:
            await asyncio.sleep(0)
        (pid,) = tools.running
        deadline = time.monotonic() + 30
        while not asking.done() and time.monotonic() < deadline:
            process_tree.reap_children(keep=tools.running)
            await asyncio.sleep(0)
        assert tools.running == set()
        assert pid not in process_tree.children_of(os.getpid())
        return await asking

    assert asyncio.run(main()).status == 5
