"""What follows from a checkpoint, or from a save that has failed."""

import asyncio
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.checkpoint.manifest import Reason
from orchestrator.rundir.journal import Journal
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.publishing import Publisher
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.save_requests import SaveRequests
from orchestrator.supervisor.stop_request import StopRequest
from tests.checkpoint.support import names, new_store, publish
from tests.supervisor.support import GRACE_SECONDS, HeldRotationCatalog, take_snapshot


def test_stop_does_not_wait_for_the_rotation_that_a_checkpoint_began(tmp_path: Path) -> None:
    """The slot of a periodic write that waits for a rotation is free for the stop's own save."""
    store, stop = new_store(tmp_path), StopRequest(GRACE_SECONDS)
    facts, journal = RunFacts(stop), Journal(store.run.journal_file)

    async def play() -> None:
        catalog = HeldRotationCatalog(store)
        requests = SaveRequests(facts, is_possible=True)
        publisher = Publisher(facts, catalog, requests, CheckpointJournal(journal))
        queue = SnapshotWriteQueue(store, catalog, stop, publisher)
        snapshot = take_snapshot(queue)
        publisher.checkpoint_written(snapshot, publish(store, 1), 0.1)
        queue.write(snapshot, Reason.PERIODIC)
        await queue.wait_for([snapshot], asyncio.Event(), 0.1)
        assert names(store) == ["step-000000000001"]
        stop.record("SIGTERM")
        await queue.wait_for([snapshot], asyncio.Event(), 10.0)
        assert names(store) == ["step-000000000001", "step-000000000007"]

    asyncio.run(play())


def test_failed_save_is_the_runs_problem_until_a_checkpoint_is_there(tmp_path: Path) -> None:
    """Status and journal tell why a save failed; the next checkpoint ends the problem."""
    store, facts = new_store(tmp_path), RunFacts(StopRequest(GRACE_SECONDS))
    journal = Journal(store.run.journal_file)

    async def play() -> None:
        catalog = HeldRotationCatalog(store)
        requests = SaveRequests(facts, is_possible=True)
        publisher = Publisher(facts, catalog, requests, CheckpointJournal(journal))
        publisher.save_failed({"step": 1, "problem": "disk full"})
        assert facts.problem == "disk full"
        publisher.checkpoint_published(publish(store, 2).name, {"seconds": 0.1})
        assert facts.problem is None

    asyncio.run(play())
    events, _ = journal.read()
    assert [(e["event"], e["step"]) for e in events] == [
        ("checkpoint_failed", 1),
        ("checkpoint_published", 2),
    ]


def test_request_to_save_without_a_trainer_is_answered_at_once() -> None:
    """Between two attempts nothing can be saved, and the command line is told so."""
    answers: list[dict[str, Any]] = []
    SaveRequests(RunFacts(StopRequest(GRACE_SECONDS)), is_possible=True).request(answers.append)
    assert answers == [{"type": "failed", "problem": "no trainer is running now"}]
