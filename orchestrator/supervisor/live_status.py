"""The status of a running run, for `orchestrator status` and for systemd."""

import os
import time
from typing import Any

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.journal import Journal
from orchestrator.spare.pool import SparePool
from orchestrator.supervisor.at_risk import kill_loses_seconds, machine_loses_seconds
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.system.heartbeat import Heartbeat
from orchestrator.telemetry.run_state import State
from orchestrator.telemetry.status import Status, describe_checkpoint


class LiveStatus:
    """A view of what the parts of the supervisor know; it changes nothing."""

    def __init__(
        self,
        facts: RunFacts,
        store: Store,
        catalog: CheckpointCatalog,
        snapshots: SnapshotWriteQueue,
        spares: SparePool,
        journal: Journal,
    ) -> None:
        self._facts = facts
        self._store = store
        self._catalog = catalog
        self._snapshots = snapshots
        self._spares = spares
        self._journal = journal

    def status(self) -> Status:
        """Return the status of the run at this moment."""
        status = Status(
            run_id=self._store.run_id,
            state=self._facts.machine.state,
            run_dir=str(self._store.run.root),
            supervisor_pid=os.getpid(),
            restarts=self._facts.restarts,
            restarts_by_kind=dict(self._facts.restarts_by_kind),
            trained_steps=self._facts.trained_steps,
            problem=self._facts.problem,
            spare_pid=self._spares.pid,
            spare=self._spares.status(),
        )
        if self._catalog.newest is not None:
            status.newest_checkpoint = describe_checkpoint(self._catalog.newest)
        if (attempt := self._facts.attempt) is not None:
            self._add_attempt(status, attempt)
            if attempt.adopted is not None:
                self._describe_script(status)
        status.goodput = self._goodput()
        return status

    def heartbeats(self) -> list[Heartbeat]:
        """Return the heartbeats of all threads whose work must make progress."""
        attempt = self._facts.running_attempt
        output = [] if attempt is None else [rank.output.heartbeat for rank in attempt.ranks]
        return [self._snapshots.heartbeat, *output]

    def _add_attempt(self, status: Status, attempt: Attempt) -> None:
        status.attempt = attempt.number
        status.metrics = attempt.main.metrics
        if attempt.shows_saves:
            status.step, status.epoch = attempt.step, attempt.epoch
        status.progress = self._facts.progress.of(attempt)
        status.snapshots = self._snapshot_facts(attempt)
        if (memory := self._snapshots.memory) and (newest := memory.newest_step_and_age()):
            step, age = newest
            status.newest_snapshot = {"step": step, "age_seconds": round(age, 3)}
        if (silence := attempt.silence) is not None:
            status.phase = silence.activity
            status.silent_seconds = round(silence.seconds, 3)
            status.hang_budget_seconds = silence.timeout_seconds
        if not attempt.over.is_set():
            status.trainer_pid = attempt.main.process.pid
            status.lose_at_most_seconds = kill_loses_seconds(status, attempt)
            status.machine_loses_at_most_seconds = machine_loses_seconds(
                status, attempt, self._snapshots
            )
        if len(attempt.ranks) > 1:
            status.ranks = [
                {
                    "rank": rank.number,
                    "pid": rank.process.pid,
                    "step": rank.step,
                    "state": "ended" if rank.is_over else rank.page.phase.name.lower(),
                }
                for rank in attempt.ranks
            ]

    def _goodput(self) -> dict[str, Any]:
        attempt, running = self._facts.attempt, None
        if attempt is not None:
            facts = attempt.time_until(time.monotonic())
            running = {**facts, "is_adopted": attempt.adopted is not None}
        return self._facts.goodput.to_json(self._journal.now(), running)

    def _describe_script(self, status: Status) -> None:
        """Leave out what only a session tells: phases, and a spare for its imports."""
        if status.state == State.STARTING:
            status.state = State.TRAINING
        status.spare = status.spare_pid = None
        status.phase = None

    def _snapshot_facts(self, attempt: Attempt) -> dict[str, Any] | None:
        if not attempt.main.snapshot_facts:
            return None
        failures = self._facts.failures.rate()
        # The failures count an attempt themselves once it is over.
        running_seconds = 0.0 if attempt.over.is_set() else time.monotonic() - attempt.started
        shown = ("interval_seconds", "stall_seconds", "bytes")
        facts = {key: attempt.main.snapshot_facts.get(key) for key in shown}
        return facts | {
            "write_seconds": self._snapshots.last_write_seconds or None,
            "failure_seconds": failures and round(failures.mean_seconds(running_seconds), 3),
        }
