"""A session's first message: it is welcomed with what it needs, or refused with the reason."""

from dataclasses import asdict

from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.ipc.messages import PROTOCOL_VERSION, Message, several_processes
from orchestrator.ipc.server import Peer
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.rank import Rank
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.supervisor.state_machine import Event

NO_SESSION = (
    "this run has --adopt, which is for scripts that save for themselves, but the script opens a "
    "Session, which saves; leave one of the two out"
)
ATTEMPT_IS_OVER = "its attempt has ended"
SECOND_SESSION = (
    "a run is one training, and its command has opened a session already; give each training a "
    "command and a run of its own (`orchestrator run --run-dir ...`), or run the script without a "
    "supervisor and with a run_dir for each Session or OrchestratorCallback"
)


class SessionOpening:
    """Opens the one session of each attempt."""

    def __init__(
        self,
        config: Config,
        command: list[str],
        store: Store,
        facts: RunFacts,
        snapshots: SnapshotWriteQueue,
    ) -> None:
        self._config = config
        self._command = command
        self._store = store
        self._facts = facts
        self._snapshots = snapshots

    async def handle_hello(self, peer: Peer, message: Message) -> None:
        """Welcome or refuse the session that says hello."""
        # A trainer that the spare has forked may be faster than the end of its launch here.
        await self._facts.launch_done.wait()
        attempt = self._facts.attempt
        is_over = attempt is not None and (
            attempt.over.is_set() or str(message.get("attempt")) != str(attempt.number)
        )
        if self._config.adopt is not None:
            # What a process of an earlier attempt is told says nothing about this one.
            _refuse(peer, None if is_over else attempt, NO_SESSION)
        elif (size := message.get("world_size")) not in (None, self._snapshots.world_size):
            _refuse(peer, None if is_over else attempt, several_processes(size))
        elif attempt is None:
            return
        elif is_over:
            peer.send({"type": "refused", "reason": ATTEMPT_IS_OVER})
        elif (rank := attempt.ranks[_rank_in(message, attempt)]).connected:
            rank.refused_second_session = True
            attempt.withhold_completion(rank)  # before the answer may end the trainer
            _refuse(peer, attempt, SECOND_SESSION)
        else:
            rank.open_session(peer, message.get("pid"))
            peer.send(self._welcome(attempt, rank), self._descriptors_for(attempt, rank))
            if all(each.connected for each in attempt.ranks):
                self._facts.machine.handle(Event.CONNECTED)

    def _descriptors_for(self, attempt: Attempt, rank: Rank) -> list[int]:
        """Return a session's descriptors; any rank but 0 also reads the snapshot of rank 0."""
        descriptors, snapshot = attempt.session_descriptors(rank), attempt.resume_snapshot
        return [*descriptors, snapshot.descriptor] if rank.number and snapshot else descriptors

    def _welcome(self, attempt: Attempt, rank: Rank) -> Message:
        snapshot = attempt.resume_snapshot
        failures = self._facts.failures.rate() if self._config.adapts_snapshots else None
        return {
            "type": "welcome",
            "protocol": PROTOCOL_VERSION,
            "run_id": self._store.run_id,
            "command": self._command,
            "start": self._store.start_record,
            "every": asdict(self._config.every),
            "snapshot_budget": self._config.snapshot_share,
            "snapshot_cost_seconds": self._snapshots.cost_seconds,
            "failures": failures and asdict(failures),
            "allow_data_change": self._config.allow_data_change,
            "resume_generation": snapshot.generation if snapshot else None,
            "writing_generations": [s.generation for s in self._snapshots.pending],
            "grace_seconds": self._config.grace,
            "rank": rank.number,
            "world_size": len(attempt.ranks),
            "resume_bytes": snapshot.image_bytes if snapshot else None,
        }


def _rank_in(message: Message, attempt: Attempt) -> int:
    """Return which of several ranks says hello; a single one may call itself by any number."""
    number = message.get("rank")
    is_known = isinstance(number, int) and number < len(attempt.ranks)
    return int(number) if len(attempt.ranks) > 1 and is_known else 0  # type: ignore[arg-type]


def _refuse(peer: Peer, attempt: Attempt | None, reason: str) -> None:
    if attempt is not None:
        attempt.refuse(reason)
    peer.send({"type": "refused", "reason": reason})
