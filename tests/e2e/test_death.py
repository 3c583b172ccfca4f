"""Each kind of death of a trainer: its diagnosis, its record, and the action that follows."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rundir.paths import RunDir
from tests.e2e.support import (
    Supervised,
    Terminal,
    WarmTrainers,
    events,
    wait_for,
)

Start = Callable[..., Supervised]

# Steps are faster than the disk here, and a death must not come before its checkpoint.
SAVED = """
import glob, time
while not glob.glob('run/checkpoints/step-%012d'):
    time.sleep(0.01)
"""
ONE_LIFE = ("--max-restarts", "0", "--snapshot-budget", "off")
# torch 2.7 has no class of its own for this.
ACCELERATOR_ERROR = "getattr(torch, 'AcceleratorError', RuntimeError)"
CUDA = "\\nCUDA kernel errors might be asynchronously reported at some other API call"
DEATHS = {
    "exception": ("raise ValueError('no such label')", "exception", "ValueError: no such label"),
    "exit status": ("import os; os._exit(3)", "exit_status", "ended with status 3"),
    "unknown argument": (
        "import argparse; argparse.ArgumentParser().parse_args(['--resume'])",
        "usage",
        "ended with status 2",
    ),
    "abort": ("import os; os.abort()", "crashed", "SIGABRT"),
    "SIGKILL": ("import os; os.kill(os.getpid(), 9)", "killed", "SIGKILL"),
    "MemoryError": ("raise MemoryError", "memory_error", "MemoryError"),
    "torch's allocator": ("torch.empty(1 << 50)", "memory_error", "can't allocate memory"),
    "a full disk": (
        "file = open('/dev/full', 'w'); file.write('x'); file.flush()",
        "disk_full",
        "No space left on device",
    ),
    "a flaky disk": (
        "import errno; raise OSError(errno.EIO, 'Input/output error')",
        "io_error",
        "Input/output error",
    ),
    "CUDA out of memory": (
        "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0')",
        "cuda_out_of_memory",
        "CUDA out of memory",
    ),
    "CUDA illegal access": (
        f"raise {ACCELERATOR_ERROR}('CUDA error: an illegal memory access was encountered{CUDA}')",
        "cuda_error",
        "illegal memory access",
    ),
    "CUDA assert": (
        f"raise RuntimeError('CUDA error: device-side assert triggered{CUDA}')",
        "cuda_error",
        "device-side assert",
    ),
}


def exit_record(run: RunDir, attempt: int = 1) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run.attempt(attempt).exit_file.read_text())
    return content


@pytest.mark.parametrize("death", DEATHS)
def test_each_death_is_diagnosed(supervise: Start, warm_trainers: WarmTrainers, death: str) -> None:
    """The cause of the end is in exit.json, in the journal and in the message to users."""
    code, kind, words = DEATHS[death]
    command = [*warm_trainers.command, "--run-at", "3", "--code", SAVED % 1 + code]
    run = supervise(command=command, options=(*ONE_LIFE, "--log-format", "json"))
    status, _, stderr = run.end()
    assert status == 70, stderr
    record = exit_record(run.run)
    assert record["kind"] == kind
    assert words in record["cause"]
    assert (record["step"], record["phase"]) == (3, "train")
    assert 0 <= record["since_safe_point_seconds"] <= record["seconds"]
    assert record["peak_memory_bytes"] > 1 << 20
    assert (record["decision"], record["oom_kills"]) == ("give_up", 0)
    journalled = events(run.run, "attempt_exited")[-1]
    assert {key: journalled[key] for key in record} == record
    told = next(line for line in map(json.loads, stderr.splitlines()) if "details" in line)
    assert told["event"] == record["cause"]
    details = "\n".join(told["details"])
    assert "attempt 1, while training, step 3" in details
    assert "saved: step 1, " in details
    assert f"gave up: {record['reason']}" in details
    assert str(run.run.attempt(1).output_file) in details


def test_segfault_is_recorded_with_its_stack_and_last_lines(supervise: Start) -> None:
    """Faulthandler's stack is in the output, and its top frame in the record and the cause."""
    code = "print('\\x1b[31mone\\x1b[0m\\n 1%\\r 99%\\r'); import ctypes; ctypes.string_at(0)"
    run = supervise("--run-at", "3", "--code", code, options=ONE_LIFE, cold=True)
    assert run.end()[0] == 70
    record = exit_record(run.run)
    assert (record["kind"], record["signal"]) == ("crashed", signal.SIGSEGV)
    assert "string_at" in record["stack"][0]
    assert record["stack"][0] in record["cause"]
    assert "Fatal Python error: Segmentation fault" in run.run.attempt(1).output_file.read_text()
    lines = record["last_lines"]
    assert lines[lines.index("one") + 1] == " 99%"


WORKER = """
import os, signal, sys
import torch
from orchestrator.training import Session

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])

if __name__ == "__main__":
    with Session(model=torch.nn.Linear(1, 1)) as session:
        for epoch in session.epochs(1):
            for batch in session.batches(torch.utils.data.DataLoader(Data(), num_workers=1)):
                session.step()
"""


@pytest.mark.parametrize(
    ("name", "kind"),
    [("SIGBUS", "shared_memory_full"), ("SIGKILL", "worker_killed"), ("SIGSEGV", "crashed")],
)
def test_death_of_a_loader_worker_is_diagnosed_by_its_signal(
    supervise: Start, tmp_path: Path, warm_trainers: WarmTrainers, name: str, kind: str
) -> None:
    """A bus error in a worker means too little shared memory; other signals mean other causes."""
    (tmp_path / "script.py").write_text(WORKER)
    command = [*warm_trainers.command[:-1], "script.py", name]
    run = supervise(command=command, options=ONE_LIFE)
    _, _, stderr = run.end()
    assert exit_record(run.run)["kind"] == kind
    assert ("--shm-size" in stderr) == (name == "SIGBUS")


SESSION = """
import sys, threading
import torch
from orchestrator.training import Session

class Broken(Exception):
    pass

def fail():
    raise Broken("deliberately")

def train():
    with Session(model=torch.nn.Linear(1, 1)) as session:
        for step in session.steps(2):
            session.step()

"""
HOOK = "import sys\nsys.excepthook = lambda *error: print('a hook of the script', error[1])\n"
THREAD_HOOK = "import os, threading\nthreading.excepthook = lambda arguments: os._exit(9)\n"
IN_THREAD = "threading.Thread(target=fail, name='prefetch').start(); threading.Event().wait(60)"
ELSEWHERE = {
    "before": (f"{SESSION}fail()", "exception"),
    "after": (f"{SESSION}train(); fail()", "failed_afterwards"),
    "earlier hook": (f"{HOOK}{SESSION}fail()", "exception"),
    "later hook": (f"{SESSION}{HOOK}fail()", "exception"),
    "thread": (f"{THREAD_HOOK}{SESSION}{IN_THREAD}", "exception"),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_exception_outside_the_session_is_recorded(
    supervise: Start, tmp_path: Path, where: str
) -> None:
    """Exceptions before, after and beside the session are recorded, whatever hooks are set."""
    code, kind = ELSEWHERE[where]
    (tmp_path / "script.py").write_text(code)
    run = supervise(command=[sys.executable, "script.py"], options=ONE_LIFE)
    status, stdout, _ = run.end()
    assert status == 70
    record = exit_record(run.run)
    assert record["kind"] == kind
    assert "Broken: deliberately" in record["cause"]
    error = json.loads(run.run.attempt(1).error_file.read_text())
    assert error["type"] == "Broken"
    assert "fail()" in error["traceback"] or where == "thread"
    assert ("a hook of the script deliberately" in stdout) == ("hook" in where)
    assert ("in the thread prefetch" in record["cause"]) == (where == "thread")


def test_exception_in_a_thread_is_not_the_cause_of_a_later_death(
    supervise: Start, tmp_path: Path
) -> None:
    """An exception in a thread that the process survives does not explain a later death."""
    code = f"{IN_THREAD.split(';')[0]}\nthreading.enumerate()[-1].join()\nimport os; os.abort()"
    (tmp_path / "script.py").write_text(SESSION + code)
    run = supervise(command=[sys.executable, "script.py"], options=ONE_LIFE)
    run.end()
    assert "Broken: deliberately" in run.run.attempt(1).output_file.read_text()
    assert exit_record(run.run)["kind"] == "crashed"
    assert not run.run.attempt(1).error_file.exists()


def test_import_error_without_a_session_is_read_from_the_output(supervise: Start) -> None:
    """A failure before the session is diagnosed from the traceback in the output."""
    run = supervise(command=[sys.executable, "-c", "import no_such_module"])
    assert run.end()[0] == 70
    record = exit_record(run.run)
    assert record["kind"] == "import_error"
    assert "ModuleNotFoundError: No module named 'no_such_module'" in record["cause"]


def test_failure_on_a_terminal_is_a_paragraph(tmp_path: Path) -> None:
    """On a terminal the cause is followed by plain lines."""
    terminal = Terminal(tmp_path, [sys.executable, "-c", "import no_such_module"])
    assert terminal.end() == 70
    cause, _, below = terminal.text.partition("the trainer failed with ModuleNotFoundError: ")
    assert cause
    lines = [line.rstrip() for line in below.splitlines()[1:]]
    assert lines == [
        "    attempt 1, before its session began",
        "    saved: nothing: the command has opened no Session",
        "    now: gave up: it failed before its first safe point or checkpoint, and a restart "
        "would fail too; fix this and run the command again",
        "    its whole output: run/attempts/0001/output.log",
    ]


@pytest.fixture
def memory_group() -> Iterator[Callable[[int], Path]]:
    """Yield a function that makes a memory control group with a limit, in either version."""
    made: list[Path] = []

    def make(limit_bytes: int) -> Path:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            version_1 = "memory" in controllers.split(",")
            if not version_1 and controllers:
                continue
            top = Path("/sys/fs/cgroup") / ("memory" if version_1 else "") / path.lstrip("/")
            group = top / f"orchestrator-test-{os.getpid()}"
            limit = group / ("memory.limit_in_bytes" if version_1 else "memory.max")
            with contextlib.suppress(OSError):
                group.mkdir()
                made.append(group)
                limit.write_text(str(limit_bytes))
                return group
        pytest.skip("no memory control group can be made here")

    yield make
    for group in made:
        wait_for(lambda g=group: not (g / "cgroup.procs").read_text(), "an empty group", 15)
        group.rmdir()


OOM_IN_TRAINER = "bytearray(1 << 30)"
OOM_IN_WORKER = WORKER.replace("os.kill(os.getpid(), signal.Signals[sys.argv[1]])", OOM_IN_TRAINER)


@pytest.mark.parametrize(
    ("script", "limit_mib"), [(OOM_IN_TRAINER, 200), (OOM_IN_WORKER, 900)], ids=["itself", "worker"]
)
def test_oom_kill_is_distinguished_from_other_kills(
    supervise: Start,
    tmp_path: Path,
    memory_group: Callable[[int], Path],
    script: str,
    limit_mib: int,
) -> None:
    """The counters of the trainer's control group show the OOM kill."""
    members = memory_group(limit_mib << 20) / "cgroup.procs"
    (tmp_path / "script.py").write_text(script)
    run = supervise(
        command=[sys.executable, "script.py"],
        options=ONE_LIFE,
        preexec_fn=lambda: members.write_text(str(os.getpid())),
    )
    status, _, stderr = run.end()
    assert status == 70, stderr
    record = exit_record(run.run)
    assert (record["kind"], record["oom_kills"]) == ("oom_killed", 1)
    assert record["memory_limit_bytes"] == limit_mib << 20
    assert f"where {limit_mib}.0 MiB are allowed" in stderr


POISON = """
import ctypes, os, sys
import torch
from orchestrator.training import Session

class Poison:
    step = 0

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]
        if self.step == 6 and not os.path.exists("recovered"):
            exec(sys.argv[1])

poison = Poison()
with Session(model=torch.nn.Linear(1, 1), poison=poison) as session:
    if session.global_step == 3:
        open("recovered", "w")
    for step in session.steps(9):
        if step == 7 and not os.path.exists("recovered"):
            exec(sys.argv[2])
            os._exit(1)
        poison.step = step + 1
        session.step()
"""


@pytest.mark.parametrize(
    ("death", "deaths", "from_memory"),
    [("ctypes.string_at(0)", 2, True), ("os.kill(os.getpid(), 9)", 4, False)],
    ids=["segfault, from memory", "SIGKILL, from the disk"],
)
def test_checkpoint_that_kills_its_loader_is_demoted(
    supervise: Start,
    tmp_path: Path,
    warm_trainers: WarmTrainers,
    death: str,
    deaths: int,
    from_memory: bool,
) -> None:
    """A second crash or a fourth SIGKILL while loading a state makes way for an older one."""
    (tmp_path / "script.py").write_text(POISON)
    command = [*warm_trainers.command[:-1], "script.py", death, SAVED % 6]
    options = ("--every", "3steps", "--snapshot-budget", "off")
    if not from_memory:
        assert supervise(command=command, options=(*options, "--max-restarts", "0")).end()[0] == 70
    run = supervise(command=command, options=options)
    status, _, stderr = run.end()
    assert status == 0, stderr
    exits, starts = events(run.run, "attempt_exited"), events(run.run, "attempt_started")
    assert [e["loading_step"] for e in exits] == [None, *[6] * deaths, None]
    assert [e["phase"] for e in exits] == ["train", *["restore"] * deaths, "done"]
    assert [e["decision"] for e in exits][1:] == ["retry"] * (deaths - 1) + ["demote", "finish"]
    assert [e["resume_step"] for e in starts] == [None, *[6] * deaths, 3]
    assert starts[1]["from_memory"] == from_memory
    demoted = [e for e in events(run.run, "checkpoint_quarantined") if e["demoted"]]
    assert [path.name for path in run.run.quarantine.iterdir()] == ["step-000000000006"]
    assert len(demoted) == 1
    assert "while loading the state of step 6" in stderr


def test_kills_from_outside_set_no_checkpoint_aside(
    supervise: Start, tmp_path: Path, warm_trainers: WarmTrainers
) -> None:
    """After two SIGKILLs while loading a good checkpoint, that checkpoint is loaded."""
    (tmp_path / "script.py").write_text(POISON)
    killed_twice = (
        "open(f'life{os.getpid()}', 'w')\n"
        "life = sum(name.startswith('life') for name in os.listdir('.'))\n"
        "os.kill(os.getpid(), 9) if life < 3 else open('recovered', 'w')"
    )
    run = supervise(
        command=[*warm_trainers.command[:-1], "script.py", killed_twice, SAVED % 6],
        options=("--every", "3steps", "--snapshot-budget", "off"),
    )
    assert run.end()[0] == 0
    starts = events(run.run, "attempt_started")
    assert [e["resume_step"] for e in starts] == [None, 6, 6, 6]
    assert not run.run.quarantine.exists()


def test_memory_error_after_resuming_demotes_no_checkpoint(
    supervise: Start, warm_trainers: WarmTrainers
) -> None:
    """Two MemoryErrors at the same step end the run, and its checkpoint stays."""
    code = f"if session.resumed_from: raise MemoryError\n{SAVED % 6}raise ValueError"
    arguments = ("--run-at", "6", "--code", code)
    options = ("--every", "3steps", "--snapshot-budget", "off")
    run = supervise(command=[*warm_trainers.command, *arguments], options=options)
    assert run.end()[0] == 70
    kinds = [e["kind"] for e in events(run.run, "attempt_exited")]
    assert kinds == ["exception", "memory_error", "memory_error"]
    assert [e["resumed_step"] for e in events(run.run, "attempt_exited")] == [None, 6, 6]
    assert "the same failure came again at step 6" in events(run.run, "gave_up")[0]["reason"]
    assert not run.run.quarantine.exists()


FLAKY = """
import errno, pathlib
left = pathlib.Path('left')
count = int(left.read_text()) if left.exists() else 2
if count:
    left.write_text(str(count - 1))
    raise OSError(errno.EIO, 'Input/output error')
"""


def test_temporary_disk_failure_is_survived(supervise: Start, warm_trainers: WarmTrainers) -> None:
    """Repeated I/O errors at the same step are retried, since the disk may recover."""
    command = [*warm_trainers.command, "--epochs", "1", "--run-at", "5", "--code", FLAKY]
    run = supervise(command=command, options=("--every", "2steps"))
    assert run.end()[0] == 0
    kinds = [e["kind"] for e in events(run.run, "attempt_exited")]
    assert kinds == ["io_error", "io_error", "complete"]


ECC = f"raise {ACCELERATOR_ERROR}('CUDA error: uncorrectable ECC error encountered')"


@pytest.mark.parametrize(("every", "saved", "expected"), [("1steps", 3, 75), ("1h", 1, 74)])
def test_broken_hardware_ends_the_run_to_be_run_elsewhere(
    supervise: Start, warm_trainers: WarmTrainers, every: str, saved: int, expected: int
) -> None:
    """After one retry the exit status says to run it again, and whether it is saved."""
    command = [*warm_trainers.command, "--run-at", "3", "--code", SAVED % saved + ECC]
    run = supervise(command=command, options=("--every", every, "--snapshot-budget", "off"))
    status, _, stderr = run.end()
    assert status == expected, stderr
    assert [e["decision"] for e in events(run.run, "attempt_exited")] == ["retry", "requeue"]
    assert events(run.run, "run_stopped")[0]["status"] == expected
    assert "this machine is to blame" in stderr
    assert run.status()["state"] == "stopped"


def test_slices_that_are_too_short_end_the_run(
    supervise: Start, warm_trainers: WarmTrainers
) -> None:
    """Deaths and stops before a checkpoint add up over supervisors until the run gives up."""
    code = f"{SAVED % 1}print('slow', flush=True); time.sleep(300)"
    command = [*warm_trainers.command, "--run-at", "1", "--code", code]
    options = ("--grace", "1s", "--max-restarts", "3", "--snapshot-budget", "off")
    for attempt in range(1, 5):
        run = supervise(command=command, options=options)
        trainer = warm_trainers.newest()
        assert trainer is not None
        run.wait_for_output("slow", attempt)
        run.signal(signal.SIGKILL)
        trainer.kill()
        run.end()
    last = supervise(command=command, options=options)
    trainer = warm_trainers.newest()
    assert trainer is not None
    last.wait_for_output("slow", 5)
    last.signal(signal.SIGTERM)
    last.wait_for_event("stop_requested")
    trainer.kill()
    status, _, stderr = last.end()
    assert status == 70, stderr
    assert "each attempt is shorter than the checkpoint interval: 4 times" in stderr
    cause = "the trainer was ended by SIGKILL while stopping"
    assert events(run.run, "gave_up")[0]["cause"] == cause
