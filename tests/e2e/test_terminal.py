"""A run at a real terminal: Ctrl-C, hang-ups, and detached runs."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyte
import pytest

from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from orchestrator.system.stop_signals import MERGE_SECONDS
from tests.e2e.support import (
    COLUMNS,
    LINES,
    SLOW_SAVE,
    Supervised,
    Terminal,
    WarmTrainers,
    assert_nothing_left,
    clean_environment,
    events,
    kill_all_runs,
    kill_leftovers,
    orchestrator,
    wait_for,
)

Start = Callable[..., Supervised]

SLOW = ("--epochs", "500", "--step-seconds", "0.05")
# A progress bar that is redrawn at every step, and one step that waits for the test.
BAR = """
import os
from tqdm import tqdm
print('waiting', flush=True)
bar = tqdm(total=1000, ncols=60, mininterval=0, ascii=True)
model.register_forward_hook(lambda *_: (bar.update(), None)[1])
while not os.path.exists('go'):
    time.sleep(0.02)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    """Yield the run that a test starts, and end it with the test."""
    run = RunDir(tmp_path / "run")
    yield run
    kill_leftovers(run)


def displayed(text: str) -> list[str]:
    """Return the lines that a terminal shows in the end."""
    screen = pyte.Screen(COLUMNS, LINES)
    pyte.Stream(screen).feed(text)
    return [line.rstrip() for line in screen.display if line.strip()]


def test_ctrl_c_is_answered_in_three_lines_and_a_countdown(
    tmp_path: Path, warm_trainers: WarmTrainers
) -> None:
    """The script's progress bar continues below the message, and the run ends by SIGINT."""
    terminal = Terminal(tmp_path, [*warm_trainers.command, *SLOW, "--run-at", "3", "--code", BAR])
    terminal.read_until("waiting")
    terminal.press_ctrl_c()
    counted: set[str] = set()
    while len(counted) < 3:
        terminal.read_more()
        counted = set(re.findall(r"waiting for the safe point: (\d+) s left", terminal.text))
    (tmp_path / "go").touch()
    assert terminal.end() == -signal.SIGINT
    lines = displayed(terminal.text)
    at = next(number for number, line in enumerate(lines) if "stopping on Ctrl-C" in line)
    assert "saving at the next safe point" in lines[at]
    assert re.search(r"up to \d+ s", lines[at + 1])
    assert "Ctrl-C again" in lines[at + 2]
    assert "a third time: kill" in lines[at + 2]
    assert sum("saved in run/checkpoints/step-" in line for line in lines) == 1
    assert not any("s left" in line for line in lines)
    bars = [line for line in lines if "/1000 [" in line]
    assert len(bars) == 1
    # The terminal itself echoes ^C, over which a shorter bar does not reach.
    assert re.fullmatch(r"\s*\d+%\|.*\| \d+/1000 \[.*\](\^C)?", bars[0])
    assert "\r\r" not in terminal.text


def test_second_ctrl_c_does_not_wait_and_third_kills(
    tmp_path: Path, run: RunDir, warm_trainers: WarmTrainers
) -> None:
    """Each Ctrl-C says on the terminal what it does."""
    options = ("--snapshot-budget", "off")
    arguments = ("--samples", "8000", "--run-at", "3", "--code", SLOW_SAVE)
    terminal = Terminal(tmp_path, [*warm_trainers.command, *SLOW, *arguments], options)
    terminal.read_until("armed\r\n")
    terminal.press_ctrl_c()
    # In the terminal's output the countdown may follow the word immediately.
    log = run.attempt(1).output_file
    wait_for(lambda: "saving" in log.read_text(), "the save")
    terminal.read_until("saving: ")
    for expected in ("may finish", "killing everything now"):
        wait_out_the_echo_time()
        terminal.press_ctrl_c()
        terminal.read_until(expected)
    assert terminal.end() == -signal.SIGINT
    assert events(run, "run_stopped")[-1]["status"] == 74
    assert len(events(run, "stop_requested")) == 3
    assert_nothing_left(run)


def wait_out_the_echo_time() -> None:
    time.sleep(2 * MERGE_SECONDS)


def test_run_under_nohup_survives_a_closed_terminal(
    tmp_path: Path, run: RunDir, warm_trainers: WarmTrainers
) -> None:
    """The training continues without a terminal, and can be stopped as usual."""
    command = [*warm_trainers.command, *SLOW]
    terminal = Terminal(tmp_path, command, through=("nohup",))
    wait_for(lambda: events(run, "checkpoint_published"), "a checkpoint")
    os.close(terminal.terminal)
    log = run.attempt(1).output_file
    before = log.read_text()
    wait_for(lambda: len(log.read_text().splitlines()) > len(before.splitlines()), "more output")
    assert events(run, "stop_requested") == []
    assert orchestrator("stop", "run", cwd=tmp_path).returncode == 0
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 75


def detach(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return orchestrator("run", "--run-dir", "run", "--detach", "--", *command, cwd=root)


def attach_to(root: Path) -> Terminal:
    return Terminal(root, [], arguments=["attach", "run"])


def test_detached_run_can_be_attached_left_and_stopped(
    tmp_path: Path, run: RunDir, warm_trainers: WarmTrainers
) -> None:
    """Attach shows the output over restarts, leaves the run at Ctrl-C, and reports its end."""
    started = detach(tmp_path, *warm_trainers.command, *SLOW)
    assert started.returncode == 0, started.stderr
    assert "training runs in the background" in started.stdout
    assert "orchestrator attach run" in started.stdout
    owner = lock_owner(run)
    assert owner is not None
    assert os.getsid(owner["pid"]) == owner["pid"]
    assert detach(tmp_path, *warm_trainers.command, *SLOW).returncode == 69

    first = attach_to(tmp_path)
    first.read_until("begins at step 0")
    trainer = warm_trainers.newest()
    assert trainer is not None
    trainer.kill()
    first.read_until("was ended by SIGKILL")
    first.read_until("begins at step", times=2)
    first.press_ctrl_c()
    assert first.end() == -signal.SIGINT
    assert "detached: training goes on" in first.text

    second = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "attach", "run"],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert second.stdout is not None
    assert second.stdout.readline()
    assert psutil.pid_exists(owner["pid"])
    assert orchestrator("stop", "run", cwd=tmp_path).returncode == 0
    _, said = second.communicate(timeout=30)
    assert second.returncode == 75
    assert "saved in run/checkpoints/step-" in said
    assert_nothing_left(run)


def test_detach_says_why_training_could_not_start(tmp_path: Path, run: RunDir) -> None:
    """The reason and the exit status are those of a run in the foreground."""
    ended = detach(tmp_path, sys.executable, "-c", "import no_such_module")
    assert ended.returncode == 70
    assert "No module named 'no_such_module'" in ended.stderr
    after = orchestrator("attach", "run", cwd=tmp_path)
    assert after.returncode == 70
    assert "no_such_module" in after.stdout
    assert "failed" in after.stderr


def test_detach_says_to_run_again_if_the_supervisor_is_killed(
    tmp_path: Path, run: RunDir, request: pytest.FixtureRequest
) -> None:
    """The command ends with 74 and not with 70 if its supervisor is killed before it trains."""
    started = Supervised(tmp_path, command=["sleep", "60"], options=("--detach", "--grace", "1s"))
    request.addfinalizer(lambda: kill_all_runs([started]))
    wait_for(lambda: events(run, "attempt_started"), "the trainer")
    os.kill((lock_owner(run) or {})["pid"], signal.SIGKILL)
    assert started.end()[0] == 74
    assert_nothing_left(run)


def test_event_hook_runs_at_the_end(tmp_path: Path, run: RunDir) -> None:
    """The hook gets the event and the run; a hook that fails is logged and changes nothing."""
    record = 'echo "$ORCHESTRATOR_EVENT $ORCHESTRATOR_RUN_DIR" >> events; sleep 0.2; exit 3'
    for command, status in (("true", 0), ("false", 70)):
        options = ("--run-dir", "run", "--on-event", record, "--", command)
        ended = orchestrator("run", *options, cwd=tmp_path)
        assert ended.returncode == status
        assert "the --on-event command failed: status 3" in ended.stderr
        (run.root / "done.json").unlink(missing_ok=True)
    assert (tmp_path / "events").read_text() == f"done {run.root}\ngave_up {run.root}\n"
