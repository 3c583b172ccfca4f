"""What a session hears when it says hello."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.checkpoint_journal import CheckpointJournal
from orchestrator.config import Config
from orchestrator.rundir.journal import Journal
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue
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


def test_hello_during_a_launch_waits_for_its_end(tmp_path: Path) -> None:
    """A forked trainer that says hello before its launch has returned is answered after that."""
    store, stop = new_store(tmp_path), StopRequest(GRACE_SECONDS)
    facts, catalog = RunFacts(stop), HeldRotationCatalog(store)
    requests = SaveRequests(facts, is_possible=True)
    journal = CheckpointJournal(Journal(store.run.journal_file))
    queue = SnapshotWriteQueue(store, catalog, stop, Publisher(facts, catalog, requests, journal))
    config = replace(Config.resolve({}, {}, tmp_path), adopt="out/*")
    opening, peer = SessionOpening(config, ["true"], store, facts, queue), Answers()

    async def play() -> None:
        facts.launch_done.clear()
        hello = asyncio.ensure_future(opening.handle_hello(peer, {"attempt": "2"}))  # type: ignore[arg-type]
        await asyncio.wait({hello}, timeout=0.05)
        assert not peer.messages
        facts.launch_done.set()
        await asyncio.wait_for(hello, 10.0)
        assert [message["reason"] for message in peer.messages] == [NO_SESSION]

    asyncio.run(play())
