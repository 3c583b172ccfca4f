"""Descendants of a process: found, described, killed, reaped."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.system import process_tree
from orchestrator.system.capabilities import Capability, is_available
from tests.support import NOBODY, in_child, wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        not is_available(Capability.PROC), reason="needs /proc with lists of children"
    ),
]

TIMEOUT_SECONDS = 10.0


def run_as_subreaper(work: Callable[[], None]) -> None:
    """Run ``work`` in a child process that is a subreaper."""

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
# Each process ends as soon as it has forked its successor, so that a scan can miss it.
FORK_CHAIN = """
import os
open('runs', 'w').close()
while True:
    if os.fork(): os._exit(0)
"""


def test_daemon_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grandchild that left its session and parents and ignores signals is found and killed."""
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        python(DAEMON).wait()
        wait_until(lambda: Path("daemon").exists() and Path("daemon").read_text(), "the daemon")
        daemon = int(Path("daemon").read_text())
        assert daemon in process_tree.descendants()
        remains = process_tree.kill_all_descendants(TIMEOUT_SECONDS)
        assert daemon in remains.seen
        assert remains.stuck == []
        process_tree.reap_children(keep=[])
        assert process_tree.Process.read(daemon) is None

    run_as_subreaper(work)


def test_chain_of_forks_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that fork while they are being killed do not escape."""
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        chain = python(FORK_CHAIN)
        try:
            wait_until(lambda: Path("runs").exists(), "the chain")
            assert process_tree.kill_all_descendants(TIMEOUT_SECONDS).stuck == []
            process_tree.reap_children(keep=[])
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
        finally:
            # After a failed test the chain would run for ever.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(chain.pid, signal.SIGKILL)

    run_as_subreaper(work)


def test_excluded_processes_are_not_killed() -> None:
    """Neither an excluded process nor its children are found or killed."""

    def work() -> None:
        kept = subprocess.Popen(["bash", "-c", "sleep 1000 & wait"], start_new_session=True)
        wait_until(lambda: process_tree.children_of(kept.pid), "its child")
        ended = subprocess.Popen(["sleep", "1000"])
        assert process_tree.descendants(exclude=[kept.pid]) == [ended.pid]
        assert process_tree.kill_all_descendants(TIMEOUT_SECONDS, exclude=[kept.pid]).seen == {
            ended.pid
        }
        assert ended.wait() == -signal.SIGKILL
        assert kept.poll() is None
        process_tree.kill_all_descendants(TIMEOUT_SECONDS)

    run_as_subreaper(work)


def test_children_started_by_other_threads_are_found() -> None:
    """A child is found whichever thread of its parent started it."""

    def work() -> None:
        code = (
            "import subprocess, threading, time\n"
            "start = lambda: (subprocess.Popen(['sleep', '1000']), time.sleep(1000))\n"
            "threading.Thread(target=start).start()"
        )
        parent = python(code)
        wait_until(lambda: process_tree.children_of(parent.pid), "the thread's child")
        assert len(process_tree.descendants()) == 2
        process_tree.kill_all_descendants(TIMEOUT_SECONDS)

    run_as_subreaper(work)


def test_process_without_its_first_thread_is_alive() -> None:
    """A process whose first thread has ended looks like a zombie but is alive."""

    def work() -> None:
        code = (
            "import ctypes, threading, time\n"
            "threading.Thread(target=time.sleep, args=[1000]).start()\n"
            "ctypes.CDLL(None).pthread_exit(None)"
        )
        pid = python(code).pid

        def read() -> process_tree.Process:
            found = process_tree.Process.read(pid)
            assert found is not None
            return found

        wait_until(lambda: read().state == "Z", "the end of its first thread")
        assert not read().is_dead
        assert not process_tree.is_being_killed(pid)
        assert process_tree.kill_all_descendants(TIMEOUT_SECONDS).stuck == []
        assert read().is_dead

    run_as_subreaper(work)


@pytest.mark.usefixtures("as_root")
def test_process_of_another_user_is_not_waited_for() -> None:
    """A process that may not be killed is reported, and the call does not wait for it."""

    def work() -> None:
        other = subprocess.Popen(["sleep", "20"], user=NOBODY)
        os.setresuid(NOBODY - 1, NOBODY - 1, NOBODY - 1)
        began = time.monotonic()
        remains = process_tree.kill_all_descendants(TIMEOUT_SECONDS)
        assert (remains.foreign, remains.stuck) == ({other.pid}, [])
        assert time.monotonic() - began < TIMEOUT_SECONDS

    run_as_subreaper(work)


@pytest.mark.parametrize("number", [0, signal.SIGSTOP, signal.SIGTERM])
def test_other_signals_are_no_kill(number: int) -> None:
    """A process that runs, is stopped, or has SIGTERM pending is not being killed.

    One that has ended is: it may end between two looks at it.
    """
    ignoring = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"
    code = f"{ignoring}; print('ready', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        os.kill(child.pid, number)
        assert not process_tree.is_being_killed(child.pid)
        child.kill()
        wait_until(lambda: process_tree.has_ended(child.pid), "its end")
    assert process_tree.is_being_killed(child.pid)


def test_thread_that_ends_meanwhile_is_no_sign_of_life() -> None:
    """The threads of a killed process end one after the other, while they are looked at."""
    ended = threading.Thread(target=bool)
    ended.start()
    ended.join()
    wait_until(lambda: not Path(f"/proc/self/task/{ended.native_id}").exists(), "its end")
    assert process_tree._is_thread_being_killed(Path(f"/proc/self/task/{ended.native_id}"))
    assert not process_tree._is_thread_being_killed(Path(f"/proc/self/task/{os.getpid()}"))


def test_kept_children_are_not_reaped() -> None:
    """The exit status of a kept process stays available to its waiter."""

    def work() -> None:
        kept = subprocess.Popen(["true"])
        adopted = subprocess.Popen(["true"])
        for process in (kept, adopted):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        process_tree.reap_children(keep=[kept.pid])
        assert process_tree.Process.read(adopted.pid) is None
        assert os.waitpid(kept.pid, os.WNOHANG)[0] == kept.pid

    run_as_subreaper(work)


def test_description_names_processes_that_cannot_run() -> None:
    """The description gives the state of the process, and of a stopped descendant."""

    def work() -> None:
        first, stopped = (subprocess.Popen(["sleep", "1000"]) for _ in range(2))
        os.kill(stopped.pid, signal.SIGSTOP)
        tree = process_tree.descendants()

        def description() -> str:
            return process_tree.describe_processes(first.pid, tree)

        wait_until(lambda: "is stopped" in description(), "the stop")
        begins = f"process {first.pid} (sleep) is waiting"
        wait_until(lambda: description().startswith(begins), "its sleep")
        assert f"its descendant {stopped.pid} (sleep) is stopped" in description()
        process_tree.kill_all_descendants(TIMEOUT_SECONDS)

    run_as_subreaper(work)
