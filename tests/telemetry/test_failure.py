"""Why a run gave up, as its journal tells it."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.rundir.history_index import read_history
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.telemetry.failure import Failure, failure_in


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def end(run: RunDir, attempt: int, **facts: Any) -> None:
    """Record the end of an attempt, as the supervisor does."""
    record = {
        "attempt": attempt,
        "kind": "exception",
        "fingerprint": "boom",
        "step": 10,
        "last_lines": ["epoch 1", "ValueError: boom"],
    }
    Journal(run.journal_file).write(JournalEvent.ATTEMPT_EXITED, **record | facts)


def give_up(run: RunDir, attempt: int | None, cause: str, reason: str) -> None:
    Journal(run.journal_file).write(
        JournalEvent.GAVE_UP, attempt, cause=cause, reason=reason, status=70
    )


def failure_of(run: RunDir) -> Failure | None:
    return failure_in(read_history(run), run)


def test_failure_says_what_where_how_often_and_which_file(run: RunDir) -> None:
    """Ends with the same defect at the same step are counted, and others are not."""
    end(run, 1, step=4)
    end(run, 2)
    end(run, 3)
    give_up(run, 3, "the trainer failed with ValueError: boom", "it came again at step 10")
    assert failure_of(run) == Failure(
        status=70,
        cause="the trainer failed with ValueError: boom",
        reason="it came again at step 10",
        kind="exception",
        attempt=3,
        step=10,
        times=2,
        output=str(run.attempt(3).output_file),
        last_line="ValueError: boom",
    )


def test_failure_without_an_attempt_has_a_reason_only(run: RunDir) -> None:
    """A run that could not begin another attempt is not blamed on the last one."""
    end(run, 1)
    give_up(run, None, "no attempt could begin", "cannot resume: repair a checkpoint")
    assert failure_of(run) == Failure(
        status=70, cause="no attempt could begin", reason="cannot resume: repair a checkpoint"
    )


def test_attempt_that_printed_nothing_has_no_last_line(run: RunDir) -> None:
    """A trainer that is killed in silence leaves no last line."""
    end(run, 1, last_lines=[])
    give_up(run, 1, "the trainer was ended by SIGKILL", "too often")
    failure = failure_of(run)
    assert failure is not None
    assert (failure.last_line, failure.times) == (None, 1)


def test_run_that_did_not_give_up_has_no_failure(run: RunDir) -> None:
    """An attempt that failed and was repeated is no failure of the run."""
    end(run, 1)
    assert failure_of(run) is None
