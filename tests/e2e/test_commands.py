"""The commands that inspect and control a run."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.paths import RunDir
from orchestrator.telemetry.progress import Progress
from tests.checkpoint.support import new_store, publish, state_of
from tests.e2e.support import (
    TRAIN,
    Supervised,
    Terminal,
    WarmTrainers,
    assert_nothing_left,
    clean_environment,
    events,
    open_store,
    orchestrator,
    wait_for,
)
from tests.e2e.warm_python import TRAINING, WarmPython

Start = Callable[..., Supervised]
NO_STEP = """
import torch
from orchestrator.training import Session
model = torch.nn.Linear(1, 1)
with Session(model=model):
    pass
"""
SLOW = ("--epochs", "50", "--step-seconds", "0.05")


def standalone(cwd: Path, *arguments: str) -> WarmPython:
    """Start the training script without a supervisor."""
    return WarmPython([str(TRAIN), *arguments], TRAINING, cwd=cwd, env=clean_environment())


def test_status_has_all_keys_during_and_after_a_run(supervise: Start) -> None:
    """`status --json` has every key of the contract, live and after the end."""
    run = supervise(*SLOW, "--samples", "800")
    run.wait_for_event("checkpoint_published")
    live = wait_for(lambda: (s := run.status())["metrics"] and s, "metrics")
    assert live["state"] == "training"
    assert live["supervisor_pid"] == run.process.pid
    assert live["trainer_pid"] == run.trainer_pid()
    assert (live["attempt"], live["restarts"], live["epoch"]) == (1, 0, 0)
    assert live["step"] >= 1
    assert live["progress"].keys() == {field.name for field in fields(Progress)}
    assert live["metrics"]["loss"] > 0
    assert live["newest_checkpoint"].keys() == {"path", "step", "age_seconds"}
    assert live["lose_at_most_seconds"] >= 0
    assert live["machine_loses_at_most_seconds"] >= live["lose_at_most_seconds"]
    run.signal(signal.SIGTERM)
    run.end()
    ended = run.status()
    assert ended.keys() == live.keys()
    assert ended["progress"].keys() == live["progress"].keys()
    assert ended["state"] == "stopped"
    assert ended["supervisor_pid"] is ended["trainer_pid"] is ended["lose_at_most_seconds"] is None
    assert ended["step"] == events(run.run, "run_stopped")[-1]["step"]


def test_progress_goes_on_over_a_kill(supervise: Start) -> None:
    """Totals, pace and time left are told live, after a SIGKILL of the trainer, and at the end."""
    run = supervise("--epochs", "50", "--samples", "800", "--step-seconds", "0.05")
    run.wait_for_event("attempt_started")
    first = wait_for(lambda: (p := run.status()["progress"])["seconds_left"] and p, "a time left")
    assert (first["total_steps"], first["epoch"], first["total_epochs"]) == (10_000, 0, 50)
    assert first["percent"] == round(first["step"] / 100, 2)
    # A step sleeps for 0.05 s: no machine makes more than twenty of them in a second.
    assert 0 < first["steps_per_second"] <= 20
    assert first["seconds_left"] >= (10_000 - first["step"]) / 20
    os.kill(run.trainer_pid(), signal.SIGKILL)
    resumed = run.wait_for_event("resumed")
    again = wait_for(
        lambda: (p := run.status()["progress"])["step"] > resumed["step"] + 20 and p, "20 steps"
    )
    assert (again["total_steps"], again["total_epochs"]) == (10_000, 50)
    assert 0 < again["steps_per_second"] <= 20
    assert run.status()["goodput"]["seconds"]["restarting"] > 0
    run.signal(signal.SIGTERM)
    run.end()
    whole = run.status()
    assert 0 < whole["goodput"]["percent"] < 100
    assert [share["attempt"] for share in whole["goodput"]["attempts"]] == [1, 2]
    ended = whole["progress"]
    stopped = events(run.run, "run_stopped")[-1]
    assert ended["step"] == stopped["step"] >= again["step"]
    assert (ended["total_steps"], ended["total_epochs"]) == (10_000, 50)
    assert ended["steps_per_second"] is ended["seconds_left"] is None


def test_stop_and_checkpoint_reach_a_running_supervisor(supervise: Start, tmp_path: Path) -> None:
    """`checkpoint` prints the new checkpoint's path; `stop` waits until the run is saved."""
    run = supervise(*SLOW)
    run.wait_for_event("checkpoint_published")
    made = orchestrator("checkpoint", str(run.run.root), cwd=tmp_path)
    assert Path(made.stdout.strip()).parent == run.run.checkpoints
    assert events(run.run, "checkpoint_published")[-1]["reason"] == "requested"
    stopped = orchestrator("stop", str(run.run.root), cwd=tmp_path)
    assert stopped.stdout.startswith("stopped at step")
    assert run.end()[0] == 75
    assert_nothing_left(run.run)
    assert orchestrator("stop", str(run.run.root), cwd=tmp_path).returncode == 0
    refused = orchestrator("checkpoint", str(run.run.root), cwd=tmp_path)
    assert refused.returncode == 74
    assert f"no process is training in {run.run.root}" in refused.stderr


def test_stop_before_the_first_step_has_nothing_to_save(supervise: Start, tmp_path: Path) -> None:
    """Neither `stop` nor the supervisor claims that a run without a checkpoint is saved."""
    run = supervise(*SLOW, cold=True)
    run.trainer_pid()
    stopped = orchestrator("stop", str(run.run.root), cwd=tmp_path)
    nothing = "stopped; the command has opened no Session: nothing was saved"
    assert stopped.returncode == 0
    assert stopped.stdout.startswith(nothing)
    status, _, stderr = run.end()
    assert "a stop signal: do not wait for that; a second one: kill at once" in stderr
    assert status == 75
    assert nothing in stderr


def test_checkpoint_during_a_stop_is_refused_at_once(supervise: Start, tmp_path: Path) -> None:
    """While a stop waits for its safe point, `checkpoint` says so and ends with 74."""
    stuck = "print('stuck', flush=True); time.sleep(300)"
    run = supervise(*SLOW, "--run-at", "3", "--code", stuck)
    run.wait_for_output("stuck")
    run.signal(signal.SIGTERM)
    run.wait_for_event("stop_requested")
    refused = orchestrator("checkpoint", str(run.run.root), cwd=tmp_path)
    assert run.process.poll() is None
    assert refused.returncode == 74
    assert "cannot save: the run is stopping" in refused.stderr


def test_stop_saves_a_script_without_supervisor(tmp_path: Path) -> None:
    """`stop` makes a standalone script save and end."""
    script = standalone(tmp_path, *SLOW)
    checkpoints = tmp_path / "runs" / "train" / "checkpoints"
    wait_for(lambda: checkpoints.exists() and list(checkpoints.glob("step-*")), "a checkpoint")
    live = json.loads(orchestrator("status", "--json", cwd=tmp_path).stdout)
    assert (live["supervisor_pid"], live["trainer_pid"]) == (None, script.pid)
    assert f"trainer {script.pid}" in orchestrator("status", cwd=tmp_path).stdout
    watching = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "status", "--watch", "--json"],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["state"] == "running"
    stopped = orchestrator("stop", cwd=tmp_path)
    assert stopped.returncode == 0
    assert stopped.stdout.startswith("stopped at step")
    script.communicate(timeout=30)
    assert script.returncode == 75
    rest, _ = watching.communicate(timeout=30)
    assert json.loads(rest.splitlines()[-1])["state"] == "stopped"


def test_session_reports_that_the_training_is_complete(tmp_path: Path) -> None:
    """A script that is run again after its end says that the training is complete."""
    said = ""
    for _ in range(2):
        script = standalone(tmp_path, "--epochs", "1")
        _, stderr = script.communicate(timeout=90)
        assert script.returncode == 0, stderr
        assert "training is complete already" not in said
        said = stderr
    assert "training is complete already (step 16); to train further, raise" in said


def test_run_completed_without_a_supervisor_is_complete_with_one(tmp_path: Path) -> None:
    """The same script with the same arguments is complete, however it was started."""
    script = standalone(tmp_path, "--epochs", "1")
    _, stderr = script.communicate(timeout=90)
    assert script.returncode == 0, stderr
    command = [sys.executable, str(TRAIN), "--epochs", "1"]
    again = orchestrator("run", "--", *command, cwd=tmp_path)
    assert again.returncode == 0
    assert "training is complete already (step 16)" in again.stderr
    assert not events(RunDir(tmp_path / "runs" / "train"), "attempt_started")


@pytest.mark.parametrize("supervised", [True, False])
def test_completion_without_a_step_is_explained(
    supervise: Start, tmp_path: Path, supervised: bool
) -> None:
    """A training that never called session.step() is told so by its next start."""
    (tmp_path / "script.py").write_text(NO_STEP)
    for _ in range(2):
        if supervised:
            run = supervise(command=[sys.executable, "script.py"])
            status, _, stderr = run.end()
        else:
            script = WarmPython(["script.py"], TRAINING, cwd=tmp_path, env=clean_environment())
            _, stderr = script.communicate(timeout=90)
            status = script.returncode
        assert status == 0, stderr
    assert "no step was ever counted: call session.step() after each optimizer step" in stderr


def test_stopped_script_says_where_it_saved_and_how_to_resume(tmp_path: Path) -> None:
    """A script without a supervisor ends with the step, the checkpoint and the next step."""
    script = standalone(tmp_path, *SLOW)
    checkpoints = tmp_path / "runs" / "train" / "checkpoints"
    wait_for(lambda: checkpoints.exists() and list(checkpoints.glob("step-*")), "a checkpoint")
    os.kill(script.pid, signal.SIGTERM)
    _, stderr = script.communicate(timeout=30)
    newest = open_store(RunDir(tmp_path / "runs" / "train")).all()[-1]
    step = newest.manifest.step
    assert f"stopped at step {step}, saved in {checkpoints / newest.name}; run the same " in (
        stderr
    )


def test_failed_run_says_why(supervise: Start, tmp_path: Path) -> None:
    """`status` names the exception, the place, the file to read and what to do, in both forms."""
    run = supervise(command=[sys.executable, "-c", "raise ValueError('boom 32')"])
    status, _, stderr = run.end()
    assert status == 70
    assert "; fix this and run the command again" in stderr
    failure = run.status()["failure"]
    assert (failure["status"], failure["attempt"], failure["times"]) == (70, 1, 1)
    assert "ValueError: boom 32" in failure["cause"]
    text = " ".join(orchestrator("status", "run", cwd=tmp_path).stdout.split())
    assert "state failed: gave up with exit status 70" in text
    assert "ValueError: boom 32" in text
    assert "output run/attempts/0001/output.log" in text
    assert "next fix this and run the command again" in text


def test_redirected_messages_are_text_for_people(supervise: Start) -> None:
    """The paragraph on a failure is as readable in a file as on a terminal, without colours."""
    _, _, stderr = supervise(command=["false"]).end()
    lines = stderr.splitlines()
    at = next(n for n, line in enumerate(lines) if "the trainer ended with status 1" in line)
    assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \[error", lines[at])
    assert lines[at + 1] == "    attempt 1, before its session began"
    assert "\x1b" not in stderr


@pytest.mark.parametrize("chosen_by", ["option", "environment", "file"])
def test_messages_are_json_where_that_is_chosen(
    supervise: Start, tmp_path: Path, chosen_by: str
) -> None:
    """Each message is then one object a line, with the lines of its paragraph as `details`."""
    options = ("--log-format", "json") if chosen_by == "option" else ()
    environment = {"ORCHESTRATOR_LOG_FORMAT": "json"} if chosen_by == "environment" else {}
    if chosen_by == "file":
        (tmp_path / "orchestrator.toml").write_text("log-format = 'json'\n")
    run = supervise(command=["false"], options=options, environment=environment)
    events_said = [json.loads(line) for line in run.end()[2].splitlines()]
    assert events_said[-1]["details"][0] == "attempt 1, before its session began"


def test_messages_in_the_systemd_journal_are_json(tmp_path: Path) -> None:
    """The journal makes an entry of each line, so that each message is one line there."""
    with open(tmp_path / "journal", "wb") as journal:
        status = os.fstat(journal.fileno())
        stream = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        for options in ((), ("--log-format", "text")):
            subprocess.run(
                [sys.executable, "-m", "orchestrator", "run", *options, "--", "false"],
                cwd=tmp_path,
                env=clean_environment() | stream,
                stderr=journal,
                timeout=60,
            )
    lines = (tmp_path / "journal").read_text().splitlines()
    is_object = [line.startswith("{") for line in lines]
    assert is_object == sorted(is_object, reverse=True)
    assert any(is_object)
    assert "    attempt 2, before its session began" in lines


def test_interrupt_during_the_imports_ends_by_sigint(tmp_path: Path) -> None:
    """A Ctrl-C during the program's imports ends it by SIGINT without a traceback."""
    (tmp_path / "xxhash.py").write_text("import time; print('loading', flush=True); time.sleep(60)")
    loading = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "run", "--", "true"],
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert loading.stdout is not None
    assert loading.stdout.readline() == "loading\n"
    loading.send_signal(signal.SIGINT)
    _, stderr = loading.communicate(timeout=30)
    assert (loading.returncode, stderr) == (-signal.SIGINT, "")


STUCK = ("--run-at", "3", "--code", "print('stuck', flush=True); time.sleep(5)")


def stop_twice(run: Path, cwd: Path) -> None:
    """Run two `stop` commands at once, which both wait for the end."""
    command = [sys.executable, "-m", "orchestrator", "stop", str(run)]
    first, second = (
        subprocess.Popen(
            command, cwd=cwd, env=clean_environment(), stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    )
    for stopper in (first, second):
        assert stopper.communicate(timeout=30)[0].startswith("stopped at step")


def test_second_stop_command_waits_with_the_first(supervise: Start, tmp_path: Path) -> None:
    """A second `stop` does not end the wait for the safe point; only signals do."""
    run = supervise(*SLOW, *STUCK)
    run.wait_for_output("stuck")
    stop_twice(run.run.root, tmp_path)
    assert run.end()[0] == 75
    assert open_store(run.run).all()[-1].manifest.reason == "emergency"


def test_second_stop_command_waits_without_a_supervisor(tmp_path: Path) -> None:
    """A second `stop` does not end a standalone script before it has saved."""
    script = standalone(tmp_path, *SLOW, *STUCK)
    assert script.stdout is not None
    while "stuck" not in script.stdout.readline():
        pass
    stop_twice(tmp_path / "runs" / "train", tmp_path)
    script.communicate(timeout=30)
    assert script.returncode == 75


def test_checkpoints_commands_work_and_show_damage(supervise: Start, tmp_path: Path) -> None:
    """list, verify, pin, unpin and export work, and each shows damage."""
    run = supervise("--epochs", "1", options=("--every", "5steps"))
    assert run.end()[0] == 0
    run_dir = str(run.run.root)

    listed = json.loads(orchestrator("checkpoints", "list", run_dir, "--json", cwd=tmp_path).stdout)
    keys = {
        *("path", "step", "epoch", "reason", "bytes", "healthy"),
        *("valid", "pinned", "time", "metrics", "exactness"),
    }
    assert all(keys <= row.keys() for row in listed)
    assert [row["step"] for row in listed] == [10, 15, 16]
    assert all(row["valid"] and row["healthy"] and not row["pinned"] for row in listed)
    assert "final" in orchestrator("checkpoints", "list", run_dir, cwd=tmp_path).stdout

    orchestrator("checkpoints", "pin", run_dir, "--step", "10", cwd=tmp_path)
    assert open_store(run.run).all()[0].pinned
    longer = supervise("--epochs", "3", options=("--every", "5steps", "--continue"))
    assert longer.end()[0] == 0
    assert open_store(run.run).all()[0].manifest.step == 10
    orchestrator("checkpoints", "unpin", run_dir, "--step", "10", cwd=tmp_path)
    assert not open_store(run.run).all()[0].pinned

    exported = orchestrator("checkpoints", "export", run_dir, "-o", "out.pt", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    content = torch.load(tmp_path / "out.pt")
    assert {"epoch", "step", "loss", "model_state_dict", "optimizer_state_dict"} <= content.keys()
    again = orchestrator("checkpoints", "export", run_dir, "-o", "out.pt", cwd=tmp_path)
    assert again.returncode == 78

    assert orchestrator("checkpoints", "verify", run_dir, cwd=tmp_path).returncode == 0
    file = open_store(run.run).all()[-1].state_file
    file.write_bytes(file.read_bytes()[:-1])
    verified = orchestrator("checkpoints", "verify", run_dir, "--json", cwd=tmp_path)
    assert verified.returncode == 65
    assert [row["valid"] for row in json.loads(verified.stdout)][-2:] == [True, False]


def test_export_and_pin_use_the_checkpoint_to_resume_from(tmp_path: Path) -> None:
    """Without --step, damaged and non-finite checkpoints are skipped."""
    store = new_store(tmp_path / "run", [10, 20])
    publish(store, 30, healthy=False)
    assert Store.open(store.run, []).run_id == store.run_id
    (store.run.checkpoints / "step-000000000020" / "state.pt").write_bytes(b"")
    exported = orchestrator("checkpoints", "export", "run", "-o", "out.pt", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "out.pt").read_bytes() == state_of(10)
    orchestrator("checkpoints", "pin", "run", cwd=tmp_path)
    assert [c.pinned for c in store.all()] == [True, False, False]
    damaged = orchestrator("checkpoints", "pin", "run", "--step", "20", cwd=tmp_path)
    assert damaged.returncode == 65


def test_output_is_logged_and_passed_on(supervise: Start) -> None:
    """All output of the script is in output.log and on the supervisor's standard output."""
    code = (
        "import sys; print('e', file=sys.stderr)\nfor n in range(5000): print('line', n, 'x' * 100)"
    )
    run = supervise("--epochs", "1", "--run-at", "2", "--code", code)
    _, stdout, _ = run.end()
    log = run.run.attempt(1).output_file.read_text()
    assert stdout == log
    assert [line.split()[1] for line in log.splitlines() if line.startswith("line")] == [
        str(n) for n in range(5000)
    ]
    assert "\ne\n" in log
    assert log.endswith("after the loop\n")


def test_closed_output_does_not_end_training(supervise: Start) -> None:
    """When the supervisor's output is closed, the training completes."""
    reader, writer = os.pipe()
    run = supervise("--epochs", "2", stdout=writer, stderr=writer)
    os.close(writer)
    os.close(reader)
    assert run.process.wait(timeout=60) == 0
    assert run.run.done_file.exists()


def unread_pipe() -> tuple[int, int]:
    """Return the ends of a pipe that is full to the last byte."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while os.write(writer, bytes(4096)):
            pass
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


def test_unread_output_blocks_neither_training_nor_a_stop(supervise: Start) -> None:
    """A reader that has stopped reading blocks nothing, and the log has all the output."""
    reader, writer = unread_pipe()
    code = "for n in range(5000): print('line', n, 'x' * 100)"
    run = supervise(*SLOW, "--run-at", "2", "--code", code, stdout=writer, stderr=writer)
    run.wait_for_output("line 4999")
    wait_for(lambda: (run.status()["step"] or 0) > 3, "steps after the output")
    run.signal(signal.SIGTERM)
    assert run.process.wait(timeout=30) == 75
    assert open_store(run.run).all()[-1].manifest.reason == "emergency"
    assert events(run.run, "attempt_exited")[-1]["output_bytes_lost"] == 0
    os.close(reader)
    os.close(writer)


def newest_reason(run: RunDir) -> str | None:
    checkpoints = open_store(run).all()
    return checkpoints[-1].manifest.reason if checkpoints else None


def test_trainer_prints_after_its_supervisor_is_killed(supervise: Start) -> None:
    """After the supervisor's death the further output of the script and its children is logged."""
    noisy = (
        "import subprocess\n"
        "model.register_forward_hook(lambda *_: print('tick', flush=True))\n"
        "subprocess.Popen(['sh', '-c', 'while sleep 0.01; do echo tock || exit; done'])"
    )
    run = supervise(*SLOW, "--run-at", "1", "--code", noisy)
    run.wait_for_output("tock")
    run.signal(signal.SIGKILL)
    run.process.communicate()
    wait_for(lambda: newest_reason(run.run) == "emergency", "the save")
    log = run.run.attempt(1).output_file.read_text()
    assert "Traceback" not in log
    assert log.count("tick") + 1 >= open_store(run.run).all()[-1].manifest.step
    assert_nothing_left(run.run)


def test_ctrl_c_on_a_terminal_saves_and_ends_by_sigint(
    tmp_path: Path, warm_trainers: WarmTrainers
) -> None:
    """On a terminal the script sees a terminal, Ctrl-C saves, and the run ends by SIGINT."""
    code = "import sys; print('a terminal:', sys.stdout.isatty()); print('bar 1', end='\\r')"
    command = [*warm_trainers.command, *SLOW, "--run-at", "2", "--code", code]
    terminal = Terminal(tmp_path, command)
    terminal.read_until("bar 1\r")
    assert "a terminal: True\r\n" in terminal.text
    terminal.press_ctrl_c()
    assert terminal.end() == -signal.SIGINT
    assert "stopping on Ctrl-C" in terminal.text
    assert "saved in run/checkpoints/step-" in terminal.text
    assert "\r\r" not in terminal.text


def test_closed_terminal_saves_and_stops(tmp_path: Path, warm_trainers: WarmTrainers) -> None:
    """The SIGHUP of a closed terminal saves the state and stops the run."""
    terminal = Terminal(tmp_path, [*warm_trainers.command, *SLOW])
    terminal.read_until("begins at step 0")
    run = RunDir(tmp_path / "run")
    wait_for(lambda: events(run, "checkpoint_published"), "a checkpoint")
    os.close(terminal.terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 75
    assert open_store(run).all()[-1].manifest.reason == "emergency"
    assert_nothing_left(run)


def test_trainer_on_a_terminal_prints_after_its_supervisor_is_killed(
    tmp_path: Path, warm_trainers: WarmTrainers
) -> None:
    """After the supervisor's death on a terminal the script's output is in output.log."""
    noisy = "model.register_forward_hook(lambda *_: print('tick', flush=True))"
    command = [*warm_trainers.command, *SLOW, "--run-at", "1", "--code", noisy]
    terminal = Terminal(tmp_path, command)
    terminal.read_until("tick")
    os.kill(terminal.pid, signal.SIGKILL)
    os.waitpid(terminal.pid, 0)
    run = RunDir(tmp_path / "run")
    assert_nothing_left(run)
    newest = open_store(run).all()[-1]
    assert newest.manifest.reason == "emergency"
    assert "Traceback" not in run.attempt(1).output_file.read_text()
