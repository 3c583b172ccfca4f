"""Which rank's end is the cause of the end of all, and what all of them amount to."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.ipc.control_page import Field
from orchestrator.rundir.paths import RunDir
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.output import OutputTarget
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.stop_request import StopRequest
from orchestrator.terminal.lossy_writer import LossyWriter
from tests.checkpoint.support import new_store
from tests.supervisor.support import GRACE_SECONDS, RecordedEvents, catalog_of


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    """An attempt of three ranks whose sessions are open."""
    store = new_store(tmp_path)
    stop = StopRequest(GRACE_SECONDS)
    queue = SnapshotWriteQueue(store, catalog_of(store), stop, RecordedEvents(), 3)
    target = OutputTarget(LossyWriter(1), 1 << 20)
    attempt = Attempt(RunDir(tmp_path), 1, None, None, queue, target)
    for rank in attempt.ranks:
        rank.connected = True
    yield attempt
    attempt.close()


def record_error(attempt: Attempt, rank: int, second: int) -> None:
    error = {"type": "ValueError", "message": "bad", "time": f"2026-11-30T12:00:{second:02d}.000"}
    attempt.ranks[rank].directory.error_file.write_text(json.dumps(error))


def test_error_of_another_process_is_not_the_session_s(attempt: Attempt) -> None:
    """What a process beside the session has met does not explain the end of the session."""
    rank = attempt.ranks[0]
    for session, writer in ((None, 7), (8, 8), (8, None)):
        rank.session_pid = session
        content = {"type": "ValueError"} | ({} if writer is None else {"pid": writer})
        rank.directory.error_file.write_text(json.dumps(content))
        assert (rank.error() or {}).get("type") == "ValueError"
    rank.directory.error_file.write_text(json.dumps({"type": "ValueError", "pid": 7}))
    assert rank.error() is None


def test_first_death_is_the_cause(attempt: Attempt) -> None:
    """A rank that was killed explains the exceptions of the others."""
    assert attempt.cause.number == 0
    attempt.first_death = attempt.ranks[2]
    record_error(attempt, 0, second=1)
    assert attempt.cause.number == 2


def test_earliest_exception_is_the_cause(attempt: Attempt) -> None:
    """A rank that failed because of another one may be gone before it."""
    attempt.first_death = attempt.ranks[0]
    record_error(attempt, 0, second=2)
    record_error(attempt, 1, second=1)
    assert attempt.cause.number == 1


def test_rank_behind_the_others_has_passed_the_fewest_places(attempt: Attempt) -> None:
    """Where places are equal, polls and other safe points tell which rank has come further."""
    for rank, (places, safe_points) in zip(attempt.ranks, [(5, 9), (4, 8), (4, 7)], strict=True):
        rank.page.values[Field.PLACES] = places
        rank.page.values[Field.SAFE_POINTS] = safe_points
    assert attempt.behind.number == 2


@pytest.mark.parametrize(
    ("reported", "returncode", "has_failed"),
    [
        (0, 0, False),
        (0, 1, True),
        (75, 75, False),
        (74, 74, False),
        (78, 78, True),
        (None, 0, True),
    ],
)
def test_failure_of_a_rank(
    attempt: Attempt, reported: int | None, returncode: int, has_failed: bool
) -> None:
    """Completion and an agreed stop end a rank; anything else ends all of them."""
    rank = attempt.ranks[1]
    rank.reported_status, rank.returncode = reported, returncode
    assert attempt.has_failed(rank) is has_failed


def test_command_without_a_session_fails_by_its_status(attempt: Attempt) -> None:
    """Where no rank has a session, one may well end before the others."""
    for rank in attempt.ranks:
        rank.connected = False
    attempt.main.returncode = 0
    assert not attempt.has_failed(attempt.main)
    attempt.main.returncode = 3
    assert attempt.has_failed(attempt.main)


@pytest.mark.parametrize(
    ("statuses", "together"),
    [((0, 0, 0), 0), ((75, 75, 75), 75), ((75, 74, 75), 74), ((75, None, 75), None)],
)
def test_ranks_report_one_status(
    attempt: Attempt, statuses: tuple[int | None, ...], together: int | None
) -> None:
    """What one rank could not save is not saved, and a rank that says nothing leaves it open."""
    for rank, status in zip(attempt.ranks, statuses, strict=True):
        rank.reported_status = status
    assert attempt.reported_status == together
