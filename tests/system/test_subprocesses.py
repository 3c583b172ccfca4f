"""Programs that are asked something beside the run."""

import asyncio
import os
import time
from pathlib import Path

from orchestrator.system import process_tree
from orchestrator.system.process_tree import Process
from orchestrator.system.subprocesses import Answer, SubprocessRunner
from tests.support import wait_until


def run(*words: str, seconds: float = 30.0, **variables: str) -> Answer:
    return asyncio.run(SubprocessRunner().run(words, seconds, variables))


def test_answer() -> None:
    """Status, output and what is said on standard error, with variables of ours."""
    answer = run("sh", "-c", 'echo "$A"; echo no >&2; exit 3', A="yes")
    assert answer == Answer(3, "yes\n", "no")


def test_program_that_is_missing() -> None:
    """No such program is an answer too."""
    assert run("no-such-program") == Answer(
        None, problem="cannot run no-such-program: No such file or directory"
    )


def test_late_program_is_ended_with_what_it_started(tmp_path: Path) -> None:
    """A program that takes too long leaves nothing behind, though a child holds its output."""
    answer = run("sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/child; wait", seconds=1.0)
    assert answer == Answer(None, problem="no answer within 1 s")
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: (look := Process.look(child)) is None or look.is_dead, "the child's end")


def test_status_is_not_lost_to_who_collects_children() -> None:
    """What is running is known before anybody could collect it, and is then left alone."""

    async def main() -> Answer:
        tools = SubprocessRunner()
        asking = asyncio.ensure_future(tools.run(("sh", "-c", "exit 5"), 30.0, {}))
        while not tools.running:
            await asyncio.sleep(0)
        (pid,) = tools.running
        deadline = time.monotonic() + 30
        while not asking.done() and time.monotonic() < deadline:
            process_tree.reap(keep=tools.running)
            await asyncio.sleep(0)
        assert tools.running == set()
        assert pid not in process_tree.children_of(os.getpid())
        return await asking

    assert asyncio.run(main()).status == 5
