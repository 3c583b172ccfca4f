"""A requeue is requested once or not at all."""

import asyncio
import json
from pathlib import Path

import pytest

from orchestrator.config import Config
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.host_events import HostEvents
from orchestrator.hosts.slurm.requeue import requeue
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.paths import RunDir
from tests.hosts.slurm.fake_scontrol import FAR_SECONDS, Controller, query_of


def after_requeue(directory: Path) -> tuple[RunDir, list[dict[str, object]]]:
    run = RunDir(directory / "run")
    run.create()
    journal = Journal(run.journal_file)
    asyncio.run(requeue(query_of(), run, journal))
    return run, journal.read()[0]


def test_requeue_is_requested_once_and_recorded(controller: Controller, tmp_path: Path) -> None:
    """Scontrol is asked once, and the journal has the event."""
    run, events = after_requeue(tmp_path)
    assert controller.count_calls("requeue 7") == 1
    assert [(event["event"], event["job"]) for event in events] == [("requeued", "7")]
    assert not run.requeue_file.exists()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("COMPLETING", {"Reason": "None"}),
        ("CANCELLED", {"Reason": "None"}),
        # SLURM has requeued it: the count is above the job's own.
        ("COMPLETING", {"Reason": "TimeLimit", "Restarts": "2"}),
    ],
)
def test_cancelled_or_requeued_job_is_not_requeued(
    controller: Controller, tmp_path: Path, state: str, words: dict[str, str]
) -> None:
    """A job that was cancelled, or that SLURM has requeued itself, is not requeued."""
    controller.set_job(FAR_SECONDS, state, **words)
    run, events = after_requeue(tmp_path)
    assert controller.count_calls("requeue") == 0
    assert events == []
    assert not run.requeue_file.exists()


def test_job_at_its_time_limit_is_requeued(controller: Controller, tmp_path: Path) -> None:
    """A job that ends for its time limit is requeued."""
    controller.set_job(0, "COMPLETING", Reason="TimeLimit")
    after_requeue(tmp_path)
    assert controller.count_calls("requeue 7") == 1


def test_refused_requeue_writes_a_marker(controller: Controller, tmp_path: Path) -> None:
    """The marker names the job and contains scontrol's message."""
    controller.refuse_requeue("Requested operation is presently disabled for job 7\n")
    run, events = after_requeue(tmp_path)
    marker = json.loads(run.requeue_file.read_text())
    assert marker["job"] == "7"
    assert "presently disabled" in marker["problem"]
    assert "presently disabled" in str(events[0]["problem"])


@pytest.mark.parametrize(
    ("status", "source", "requeues"),
    [
        (ExitStatus.STOPPED_SAVED, "SIGUSR1", True),
        (ExitStatus.STOPPED_SAVED, "the end of SLURM job 7", True),
        (ExitStatus.STOPPED_UNSAVED, "SIGTERM to the trainer", True),
        # Broken hardware: no stop was requested.
        (ExitStatus.STOPPED_SAVED, None, True),
        (ExitStatus.STOPPED_SAVED, "orchestrator stop", False),
        (ExitStatus.STOPPED_SAVED, "SIGINT", False),
        (ExitStatus.STOPPED_SAVED, "SIGHUP", False),
        (ExitStatus.COMPLETE, None, False),
        # A stop that was requested meanwhile does not matter.
        (ExitStatus.COMPLETE, "SIGUSR1", False),
        (ExitStatus.GAVE_UP, "SIGUSR1", False),
        (ExitStatus.NO_VALID_CHECKPOINT, None, False),
    ],
)
@pytest.mark.parametrize("wanted", [True, False])
def test_only_stops_that_no_person_requested_are_requeued(
    controller: Controller,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: ExitStatus,
    source: str | None,
    requeues: bool,
    wanted: bool,
) -> None:
    """With --slurm-requeue a stop is requeued, unless a person requested it."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = RunDir(tmp_path / "run")
    run.create()
    journal = Journal(run.journal_file)
    config = Config(slurm_requeue=wanted)
    host_events = HostEvents(config, run, journal, lambda: 0.0, lambda source: None)
    asyncio.run(host_events.finish(status, source))
    assert controller.count_calls("requeue 7") == (wanted and requeues)
