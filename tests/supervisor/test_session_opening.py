"""What a session hears when it says hello."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.config import Config
from orchestrator.rundir.journal import Journal
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.publishing import Publisher
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.save_requests import SaveRequests
from orchestrator.supervisor.session_opening import NO_SESSION, SessionOpening
from orchestrator.supervisor.stop_request import StopRequest
from tests.checkpoint.support import new_store
from tests.supervisor.support import GRACE_SECONDS, HeldRotationCatalog


class Answers:
    """A peer that keeps what it is sent."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any], descriptors: object = ()) -> None:
        self.messages.append(message)


class RunningAttempt:
    """What an attempt tells about itself to the opening of a session."""

    number = 2

    def __init__(self, is_over: bool = False) -> None:
        self.over = asyncio.Event()
        self.refusal: str | None = None
        if is_over:
            self.over.set()

    def refuse(self, reason: str) -> None:
        self.refusal = reason


def opened(folder: Path, facts: RunFacts) -> SessionOpening:
    """What answers the sessions of a run whose script saves for itself."""
    store = new_store(folder)
    catalog = HeldRotationCatalog(store)
    requests = SaveRequests(facts, is_possible=True)
    journal = CheckpointJournal(Journal(store.run.journal_file))
    publisher = Publisher(facts, catalog, requests, journal)
    queue = SnapshotWriteQueue(store, catalog, facts.stop, publisher)
    config = replace(Config.resolve({}, {}, folder), adopt="out/*")
    return SessionOpening(config, ["true"], store, facts, queue)


def test_hello_during_a_launch_waits_for_its_end(tmp_path: Path) -> None:
    """A forked trainer that says hello before its launch has returned is answered after that."""
    facts, peer = RunFacts(StopRequest(GRACE_SECONDS)), Answers()
    opening = opened(tmp_path, facts)

    async def play() -> None:
        facts.launch_done.clear()
        hello = asyncio.ensure_future(opening.handle_hello(peer, {"attempt": "2"}))  # type: ignore[arg-type]
        await asyncio.wait({hello}, timeout=0.05)
        assert not peer.messages
        facts.launch_done.set()
        await asyncio.wait_for(hello, 10.0)
        assert [message["reason"] for message in peer.messages] == [NO_SESSION]

    asyncio.run(play())


@pytest.mark.parametrize(
    ("number", "is_over", "is_noted"), [("2", False, True), ("1", False, False), ("2", True, False)]
)
def test_refusal_is_noted_for_the_attempt_that_asked(
    tmp_path: Path, number: str, is_over: bool, is_noted: bool
) -> None:
    """A process that outlives an attempt does not make the next one a refused one."""
    facts, peer = RunFacts(StopRequest(GRACE_SECONDS)), Answers()
    opening, attempt = opened(tmp_path, facts), RunningAttempt(is_over)
    facts.attempt = attempt  # type: ignore[assignment]
    facts.launch_done.set()
    asyncio.run(opening.handle_hello(peer, {"attempt": number}))  # type: ignore[arg-type]
    assert [message["reason"] for message in peer.messages] == [NO_SESSION]
    assert attempt.refusal == (NO_SESSION if is_noted else None)
