"""The table of `status`: complete, and with names unchanged."""

import pytest
from rich.console import Console

from orchestrator.cli.status_table import status_table
from orchestrator.telemetry.status import Status
from tests.cli.support import shown


def test_failed_save_is_red() -> None:
    """The reason of a failed save is red; without one there is no such line."""
    status = Status("abc", "training", "run")
    assert "problem" not in shown(status_table(status.to_json()), 80)
    status.problem = "cannot save: No space left on device"
    console = Console(width=80, color_system="standard", force_terminal=True)
    with console.capture() as capture:
        console.print(status_table(status.to_json()))
    assert "\x1b[31mcannot save: No space left on device" in capture.get()


FAILURE = {
    "status": 70,
    "cause": "the trainer failed with ValueError: boom 32 (bug.py:24 train)",
    "reason": "the same failure came again at step 10",
    "kind": "exception",
    "attempt": 2,
    "step": 10,
    "times": 2,
    "output": "runs/bug/attempts/0002/output.log",
    "last_line": "ValueError: boom 32",
}


def test_status_of_a_failed_run_says_why_and_what_to_do() -> None:
    """The cause, the place, how often, the file to read and the next step have a line each."""
    status = Status("abc", "failed", "runs/bug", failure=FAILURE).to_json()
    lines = [line.rstrip() for line in shown(status_table(status), 200).splitlines()]
    assert lines[1:6] == [
        "state       failed: gave up with exit status 70",
        f"why         {FAILURE['cause']}; {FAILURE['reason']}",
        "where       attempt 2, step 10; 2 attempts ended like this",
        "output      runs/bug/attempts/0002/output.log",
        "next        fix this and run the command again",
    ]


def test_status_of_a_failed_run_shows_the_last_line_that_the_cause_lacks() -> None:
    """The last line of the output and the advice are shown where they say something new."""
    other = FAILURE | {"kind": "disk_full", "cause": "the trainer ended", "times": 1}
    text = shown(status_table(Status("abc", "failed", "runs/bug", failure=other).to_json()), 200)
    assert "last line   ValueError: boom 32" in text
    assert "advice      free some space or raise the quota" in text
    assert "attempts ended like this" not in text


def test_status_of_a_failed_start_says_why() -> None:
    """A run that could not start an attempt shows the reason, and no attempt."""
    facts = dict.fromkeys(FAILURE) | {
        "status": 65,
        "cause": "no attempt could begin",
        "reason": "cannot resume: repair a checkpoint",
    }
    text = shown(status_table(Status("abc", "failed", "runs/bug", failure=facts).to_json()), 200)
    assert "no attempt could begin; cannot resume: repair a checkpoint" in text
    assert "where" not in text


@pytest.mark.parametrize("state", ["stopped", "interrupted"])
def test_status_of_a_run_that_can_resume_says_how(state: str) -> None:
    """A stopped or killed run names the next step."""
    status = Status("abc", state, "runs/a")
    text = shown(status_table(status.to_json()), 200)
    assert "next        run the same command again; it begins from the start" in text
    status.newest_checkpoint = {"path": "runs/a/checkpoints/x", "step": 3, "age_seconds": 1.0}
    text = shown(status_table(status.to_json()), 200)
    assert "next        run the same command again to resume" in text


def test_status_of_a_run_at_its_limit_names_nothing_to_fix() -> None:
    """A run that was stopped by --give-up-after is continued by the same command."""
    limit = FAILURE | {
        "kind": "stopped",
        "cause": "the trainer was ended by SIGTERM while stopping",
        "reason": "the time of --give-up-after is over",
    }
    text = shown(status_table(Status("abc", "failed", "runs/a", failure=limit).to_json()), 200)
    assert "why         the time of --give-up-after is over" in text
    assert "next        run the same command again to continue" in text
    assert "SIGTERM" not in text


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ("starting", "session     none yet: nothing is saved before the script opens one"),
        ("completed", "checkpoint  none: a script is saved through a Session"),
        ("stopped", "checkpoint  none yet"),
    ],
)
def test_status_without_a_session_says_that_nothing_is_saved(state: str, line: str) -> None:
    """A script that opens no Session is not shown like one that is saved."""
    assert line in shown(status_table(Status("abc", state, "runs/a").to_json()), 200)


@pytest.mark.parametrize(
    ("machine", "text"), [(11.0, "at most 11 s"), (None, "all of it")], ids=["saved", "unsaved"]
)
def test_status_tells_a_kill_of_the_trainer_from_the_end_of_the_machine(
    machine: float | None, text: str
) -> None:
    """Snapshots in memory outlive the trainer, and not the machine."""
    status = Status("abc", "training", "runs/a", lose_at_most_seconds=0.3)
    status.machine_loses_at_most_seconds = machine
    shown_text = shown(status_table(status.to_json()), 200)
    assert "if the trainer is killed: at most 0.3 s; " in shown_text
    assert f"if the machine goes down: {text}" in shown_text


def test_status_counts_one_epoch_in_the_singular() -> None:
    """One epoch is not called epochs."""
    status = Status("abc", "training", "runs/a", step=5, epoch=1)
    assert "progress    step 5, 1 epoch done" in shown(status_table(status.to_json()), 80)


def test_run_directory_is_not_read_as_markup() -> None:
    """A run directory with brackets in its name is shown unchanged."""
    name = "br[bold]x[/red]y"
    text = shown(status_table(Status("abc", "stopped", name).to_json()), 80)
    assert [line.split() for line in text.splitlines()][:2] == [
        ["run", "abc", name],
        ["state", "stopped"],
    ]


def test_status_shows_the_newest_snapshot() -> None:
    """The snapshot's age, the interval and cost of snapshots, and the time of a write are shown."""
    status = Status(run_id="an id", state="training", run_dir="runs/train")
    status.newest_snapshot = {"step": 120, "age_seconds": 2.0}
    status.snapshots = {
        "interval_seconds": 4.5,
        "stall_seconds": 0.0453,
        "bytes": 600 << 20,
        "write_seconds": 0.5,
        "failure_seconds": 20.0,
    }
    text = " ".join(shown(status_table(status.to_json()), 200).split())
    assert "step 120, 2.0 s old, in memory; one every 4.5 s (a failure every 20 s so far)" in text
    assert "so far), taking 45.3 ms" in text
    assert "written to disk: 600.0 MiB in 0.5 s" in text


def test_narrow_terminal_cuts_no_path_off() -> None:
    """The table of `status` folds a path that is longer than the terminal is wide."""
    path = "/very/long/" + "directory" * 10
    status = Status(run_id="1", state="training", run_dir=path).to_json()
    text = shown(status_table(status), 60)
    assert path in "".join(line.strip() for line in text.splitlines())
