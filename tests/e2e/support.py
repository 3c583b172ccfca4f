"""Runs the orchestrator as users do, and inspects what it leaves."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify
from orchestrator.client import store_of
from orchestrator.ipc.messages import Connection
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from tests.e2e.warm_python import ORCHESTRATOR, WarmPython

TRAIN = Path(__file__).with_name("train.py")
WARM_TRAINER = Path(__file__).with_name("warm_trainer.py")
DEADLINE_SECONDS = 90.0
LINES, COLUMNS = 50, 200

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, seconds: float = DEADLINE_SECONDS) -> T:
    """Return the first true value of ``condition``, or fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {seconds} s still waiting for {what}"
        time.sleep(0.02)
    return value


def orchestrator(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one command of the command line to its end."""
    words = ("-m", "orchestrator", *arguments)
    process = WarmPython(words, ORCHESTRATOR, cwd=cwd, env=clean_environment())
    stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    return subprocess.CompletedProcess(arguments, process.wait(), stdout, stderr)


def clean_environment() -> dict[str, str]:
    """Return the environment without settings of the orchestrator, and with the spare off.

    The imports of a spare take seconds of both cores, so only tests of spares turn it on.
    """
    cleaned = {k: v for k, v in os.environ.items() if not k.startswith("ORCHESTRATOR_")}
    return cleaned | {"ORCHESTRATOR_SPARE": "off"}


class Supervised:
    """`orchestrator run` as a process: a warm one, or a cold one if options of Popen are given."""

    def __init__(
        self,
        root: Path,
        *script_arguments: str,
        options: tuple[str, ...] = (),
        command: list[str] | None = None,
        environment: dict[str, str] | None = None,
        **popen: Any,
    ) -> None:
        self.run = RunDir(root / "run")
        command = command or [sys.executable, str(TRAIN), *script_arguments]
        run = ["run", "--run-dir", str(self.run.root), *options, "--", *command]
        words = ["-m", "orchestrator", *run]
        where: dict[str, Any] = {"cwd": root, "env": clean_environment() | (environment or {})}
        self.process: WarmPython | subprocess.Popen[str]
        if popen.keys() <= {"stdout", "stderr"}:
            self.process = WarmPython(words, ORCHESTRATOR, **where, **popen)
        else:
            output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            words = [sys.executable, *words]
            self.process = subprocess.Popen(words, text=True, **where, **(output | popen))

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor alone."""
        os.kill(self.process.pid, number)

    def signal_all(self, number: int) -> None:
        """Signal all processes of the run, as schedulers and service managers do."""
        for process in [*psutil.Process(self.process.pid).children(recursive=True)][::-1]:
            os.kill(process.pid, number)
        self.signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for the end, and return the exit status, standard output and standard error."""
        stdout, stderr = self.process.communicate(timeout=DEADLINE_SECONDS)
        return self.process.returncode, stdout, stderr

    def status(self) -> dict[str, Any]:
        """Return the content of `status --json`."""
        result = orchestrator("status", str(self.run.root), "--json", cwd=self.run.root.parent)
        content: dict[str, Any] = json.loads(result.stdout)
        return content

    def wait_for_event(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until the journal has ``count`` events of a kind, and return the last one."""

        def found() -> dict[str, Any] | None:
            assert self.process.poll() is None or events(self.run, event), self.end()
            matching = events(self.run, event)
            return matching[-1] if len(matching) >= count else None

        return wait_for(found, f"{count} times {event}")

    def wait_for_output(self, text: str, attempt: int = 1) -> None:
        """Wait until the trainer of an attempt has printed something."""
        file = self.run.attempt(attempt).output_file
        wait_for(lambda: file.exists() and text in file.read_text(), f"{text!r} in {file}")

    def trainer_pid(self) -> int:
        """Return the process id of the newest attempt's trainer."""
        return int(self.wait_for_event("attempt_started")["pid"])


class Terminal:
    """`orchestrator run` on a real pseudo-terminal, started by ``through`` if that is given."""

    def __init__(
        self,
        root: Path,
        command: list[str],
        options: tuple[str, ...] = (),
        through: tuple[str, ...] = (),
        arguments: list[str] | None = None,
    ) -> None:
        """Run ``arguments`` instead of the command ``run`` if they are given."""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            termios.tcsetwinsize(1, (LINES, COLUMNS))
            os.chdir(root)
            run = ["run", "--run-dir", "run", *options, "--", *command]
            words = [*through, sys.executable, "-m", "orchestrator", *(arguments or run)]
            os.execvpe(words[0], words, clean_environment() | {"TERM": "xterm"})
        self.text = ""

    def read_until(self, text: str, times: int = 1) -> None:
        """Read the terminal's output until it contains ``text`` as many times as asked."""
        while self.text.count(text) < times:
            self.read_more()

    def read_more(self) -> None:
        """Read the next output of the terminal, which must come before the deadline."""
        # select() refuses descriptors above 1023, and the suite may have as many open.
        poll = select.poll()
        poll.register(self.terminal, select.POLLIN)
        ready = poll.poll(DEADLINE_SECONDS * 1000)
        assert ready, self.text
        self.text += os.read(self.terminal, 65536).decode(errors="replace")

    def press_ctrl_c(self) -> None:
        """Type Ctrl-C, which the terminal turns into SIGINT for the foreground group."""
        os.write(self.terminal, b"\x03")

    def end(self) -> int:
        """Read the remaining output, and return the exit status, negative for a signal."""
        while True:
            try:
                data = os.read(self.terminal, 65536)
            except OSError:
                break
            if not data:
                break
            self.text += data.decode()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def live_status(run: Supervised) -> dict[str, Any]:
    """Return the status from the supervisor's socket; empty if it has no socket yet."""
    owner = wait_for(lambda: lock_owner(run.run) or {}, "a supervisor")
    if "socket" not in owner:
        return {}
    connection = Connection(owner["socket"], DEADLINE_SECONDS)
    connection.send({"type": "status"})
    status = connection.receive()
    connection.close()
    assert status is not None
    return status


def events(run: RunDir, kind: str) -> list[dict[str, Any]]:
    """Return the journal's events of one kind."""
    if not run.journal_file.exists():
        return []
    lines = run.journal_file.read_text().splitlines(keepends=True)
    # Called fifty times a second on thousands of lines: most of them are skipped unparsed.
    records = [json.loads(line) for line in lines if f'"{kind}"' in line and line.endswith("\n")]
    return [record for record in records if record["event"] == kind]


def open_store(run: RunDir) -> Store:
    """Open the store of an existing run."""
    return store_of(run)


def assert_all_valid(run: RunDir, at_least: int = 1) -> None:
    """Check that every checkpoint is valid, none is in quarantine, and there are enough."""
    store = open_store(run)
    for checkpoint in store.all():
        verify(checkpoint)
    assert len(store.all()) == len(store.directories()) >= at_least
    assert store.quarantine_folder.entries() == []


def processes_of(run: RunDir) -> list[psutil.Process]:
    """Return every living process that was started for this run."""
    found = []
    for process in psutil.process_iter():
        try:
            belongs = process.environ().get("ORCHESTRATOR_RUN_DIR") == str(run.root.absolute())
            supervises = str(run.root) in process.cmdline() and "orchestrator" in process.cmdline()
            if (belongs or supervises) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def assert_nothing_left(run: RunDir) -> None:
    """Check that no process of the run is alive, and that its lock is free."""
    wait_for(lambda: not processes_of(run), "the end of every process of the run", 15)
    # A dying process loses its environment, by which it is found, before it closes the lock.
    wait_for(lambda: lock_owner(run) is None, "a free lock", 15)


def kill_leftovers(run: RunDir) -> None:
    """Kill the processes of a run, at the end of a test that may have failed."""
    for process in processes_of(run):
        process.send_signal(signal.SIGKILL)


def kill_all_runs(started: list[Supervised]) -> None:
    """Kill the supervisors and the processes of all runs of a test."""
    for run in started:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()
        kill_leftovers(run.run)


def result_of(file: Path) -> dict[str, dict[str, object]]:
    content: dict[str, dict[str, object]] = torch.load(file, weights_only=True)
    return content


def assert_same_result(file: Path, expected: Path) -> None:
    """Check that weights and optimizer state are equal bit for bit."""
    actual, wanted = result_of(file), result_of(expected)
    for key, value in actual["model"].items():
        assert torch.equal(value, wanted["model"][key])  # type: ignore[arg-type]
    assert str(actual["optimizer"]) == str(wanted["optimizer"])


# Makes the session's saves take long, and prints "armed".
SLOW_SAVE = """
class SlowToSave:
    def state_dict(self):
        print('saving', flush=True)
        time.sleep(300)
        return {}
    def load_state_dict(self, state):
        pass
session._registry._objects['slow'] = SlowToSave()
print('armed', flush=True)
"""


@contextlib.contextmanager
def forking_server(address: Path, *modules: str, **variables: str) -> Iterator[None]:
    """Start a process that has imported torch and ``modules``, and forks trainers."""
    server = subprocess.Popen(
        [sys.executable, str(WARM_TRAINER), "serve", str(address), *modules],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment() | variables,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        server.kill()
        server.wait()
        # Closed and not read to its end: a trainer of a failed test may hold the other end.
        server.stdout.close()


def forked_by(address: Path) -> list[str]:
    """Return the beginning of a command, in place of ``python``, whose trainer the server forks."""
    return [sys.executable, "-S", "-E", str(WARM_TRAINER), str(address)]


class WarmTrainers:
    """Starts trainers without importing torch each time, and finds the newest one's process."""

    def __init__(self, address: Path) -> None:
        self.command = [*forked_by(address), str(TRAIN)]
        self._pid_file = address.with_name(f"{address.name}.pid")
        self._last = self._content()

    def _content(self) -> str | None:
        return self._pid_file.read_text() if self._pid_file.exists() else None

    def newest(self) -> psutil.Process | None:
        """Wait for a new trainer, and return its process; None if it has ended already."""

        def fresh() -> str | None:
            content = self._content()
            return content if content != self._last else None

        self._last = wait_for(fresh, "a new trainer", 30)
        try:
            return psutil.Process(int(self._last))
        except psutil.NoSuchProcess:
            return None
