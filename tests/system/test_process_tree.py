"""The tree of processes below one: found, ended, collected."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.system import process_tree
from orchestrator.system.capabilities import Capability, has
from tests.support import NOBODY, in_child, wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not has(Capability.PROC), reason="needs /proc with lists of children"),
]

TIMEOUT_SECONDS = 10.0


def as_subreaper(work: Callable[[], None]) -> None:
    """Run ``work`` in a process of its own that owns all its descendants."""

    def run() -> None:
        process_tree.become_subreaper()
        work()

    assert in_child(run) == 0


def python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


DAEMON = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
open('daemon', 'w').write(str(os.getpid()))
time.sleep(1000)
"""
# Each process lives only until its successor does, which is hard to catch.
RUNS_AWAY = """
import os
open('runs', 'w').close()
while True:
    if os.fork(): os._exit(0)
"""


def test_daemon_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grandchild that left its session and its parents and ignores signals is found and ended."""
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        python(DAEMON).wait()
        wait_until(lambda: Path("daemon").exists() and Path("daemon").read_text(), "the daemon")
        daemon = int(Path("daemon").read_text())
        assert daemon in process_tree.descendants()
        remains = process_tree.end_all(TIMEOUT_SECONDS)
        assert daemon in remains.seen
        assert remains.stuck == []
        process_tree.reap(keep=[])
        assert process_tree.Process.look(daemon) is None

    as_subreaper(work)


def test_chain_of_forks_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that fork while they are being ended do not escape."""
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        chain = python(RUNS_AWAY)
        try:
            wait_until(lambda: Path("runs").exists(), "the chain")
            assert process_tree.end_all(TIMEOUT_SECONDS).stuck == []
            process_tree.reap(keep=[])
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
        finally:
            # It would run on after a failed test, for ever.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(chain.pid, signal.SIGKILL)

    as_subreaper(work)


def test_excluded_processes_are_left_alone() -> None:
    """Neither an excluded process nor what it started is found or ended."""

    def work() -> None:
        kept = subprocess.Popen(["bash", "-c", "sleep 1000 & wait"], start_new_session=True)
        wait_until(lambda: process_tree.children_of(kept.pid), "its child")
        ended = subprocess.Popen(["sleep", "1000"])
        assert process_tree.descendants(exclude=[kept.pid]) == [ended.pid]
        assert process_tree.end_all(TIMEOUT_SECONDS, exclude=[kept.pid]).seen == {ended.pid}
        assert ended.wait() == -signal.SIGKILL
        assert kept.poll() is None
        process_tree.end_all(TIMEOUT_SECONDS)

    as_subreaper(work)


def test_children_of_other_threads_are_found() -> None:
    """A process counts whichever thread started it."""

    def work() -> None:
        code = (
            "import subprocess, threading, time\n"
            "start = lambda: (subprocess.Popen(['sleep', '1000']), time.sleep(1000))\n"
            "threading.Thread(target=start).start()"
        )
        parent = python(code)
        wait_until(lambda: process_tree.children_of(parent.pid), "the thread's child")
        assert len(process_tree.descendants()) == 2
        process_tree.end_all(TIMEOUT_SECONDS)

    as_subreaper(work)


def test_process_without_first_thread_is_alive() -> None:
    """One whose first thread has ended looks like a zombie, but runs on in its others."""

    def work() -> None:
        code = (
            "import ctypes, threading, time\n"
            "threading.Thread(target=time.sleep, args=[1000]).start()\n"
            "ctypes.CDLL(None).pthread_exit(None)"
        )
        pid = python(code).pid

        def look() -> process_tree.Process:
            found = process_tree.Process.look(pid)
            assert found is not None
            return found

        wait_until(lambda: look().state == "Z", "the end of its first thread")
        assert not look().is_dead
        assert process_tree.end_all(TIMEOUT_SECONDS).stuck == []
        assert look().is_dead

    as_subreaper(work)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start another user's process")
def test_process_of_another_user_is_not_waited_for() -> None:
    """What we may not end is reported and costs no time."""

    def work() -> None:
        other = subprocess.Popen(["sleep", "20"], user=NOBODY)
        os.setresuid(NOBODY - 1, NOBODY - 1, NOBODY - 1)
        began = time.monotonic()
        remains = process_tree.end_all(TIMEOUT_SECONDS)
        assert (remains.foreign, remains.stuck) == ({other.pid}, [])
        assert time.monotonic() - began < TIMEOUT_SECONDS

    as_subreaper(work)


def test_what_others_wait_for_is_not_collected() -> None:
    """The exit status of a kept process stays for its waiter."""

    def work() -> None:
        kept = subprocess.Popen(["true"])
        adopted = subprocess.Popen(["true"])
        for process in (kept, adopted):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        process_tree.reap(keep=[kept.pid])
        assert process_tree.Process.look(adopted.pid) is None
        assert os.waitpid(kept.pid, os.WNOHANG)[0] == kept.pid

    as_subreaper(work)


def test_description_names_what_can_do_nothing() -> None:
    """The state of the process in question, and of a descendant that is stopped."""

    def work() -> None:
        first, stopped = (subprocess.Popen(["sleep", "1000"]) for _ in range(2))
        os.kill(stopped.pid, signal.SIGSTOP)
        tree = process_tree.descendants()

        def description() -> str:
            return process_tree.describe(first.pid, tree)

        wait_until(lambda: "is stopped" in description(), "the stop")
        begins = f"process {first.pid} (sleep) is waiting"
        wait_until(lambda: description().startswith(begins), "its sleep")
        assert f"its descendant {stopped.pid} (sleep) is stopped" in description()
        process_tree.end_all(TIMEOUT_SECONDS)

    as_subreaper(work)
