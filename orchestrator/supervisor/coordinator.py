"""Announces to several ranks what they do at the same place: stops, saves and snapshots.

The ranks' clocks differ, so none of them decides anything. One decision is under way at a time, and
the next is announced when every rank has its snapshot of the last one complete, or one of them has
said that it cannot take it. snapshot/rank_snapshots.py says why that keeps the newest snapshot
whole.
"""

import asyncio
import time

from orchestrator.checkpoint.manifest import Reason
from orchestrator.config import Config
from orchestrator.ipc.control_page import Field
from orchestrator.ipc.place_agreement import Deciding, Decision, Kind
from orchestrator.pace.save_schedule import Schedule
from orchestrator.pace.snapshot_pace import SnapshotPace
from orchestrator.snapshot.rank_snapshots import RankSnapshots
from orchestrator.snapshot.slots import Snapshot
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.run_events import RunEvents
from orchestrator.supervisor.run_facts import RunFacts
from orchestrator.system.threads import in_thread

TICK_SECONDS = 0.02
COMPLETION_POLL_SECONDS = 0.002
# A processor's store buffer empties in nanoseconds, so that a sleep of this length is a barrier.
BARRIER_SECONDS = 0.001
# At a snapshot no rank waits for the decision; a stop must not take longer than it has to.
SNAPSHOT_AHEAD = 2
RETRY_SNAPSHOT_NS = 10_000_000_000
# A rank may say what a snapshot has cost an instant after it is complete.
LEAST_COST_NS = 10_000

_REASONS = {Kind.STOP: Reason.EMERGENCY, Kind.FINAL: Reason.FINAL}


class Coordinator:
    """Decides for the ranks of each attempt what is due, and carries it through."""

    def __init__(
        self, config: Config, facts: RunFacts, snapshots: SnapshotWriteQueue, events: RunEvents
    ) -> None:
        """``events`` are told of saves that are not possible, and of replicas that differ."""
        self._budget = config.snapshot_share
        self._adapts = config.adapts_snapshots
        self._every = config.every
        self._schedule = Schedule(config.every)
        self._pace = SnapshotPace(None)
        self._facts = facts
        self._snapshots = snapshots
        self._events = events
        self._last_id = 0
        self._served_requests = 0
        self._save_reason = Reason.PERIODIC
        self._writing: list[Snapshot] = []

    async def run(self, attempt: Attempt) -> None:
        """Coordinate the ranks of an attempt, until cancelled."""
        failures = self._facts.failures.rate() if self._adapts else None
        self._pace = SnapshotPace(self._budget, self._snapshots.cost_seconds, failures)
        self._served_requests = 0
        self._schedule = Schedule(self._every)
        if attempt.resumes:
            self._schedule.begin(attempt.start_step, attempt.start_epoch)
        kind = None
        while kind is not Kind.STOP:
            self._record_writes()
            memory = self._snapshots.memory
            if memory is None or (kind := self._due(attempt, memory)) is None:
                await asyncio.sleep(TICK_SECONDS)
            else:
                await self._carry_through(attempt, memory, kind)

    # --- what is due -------------------------------------------------------------------------

    def _due(self, attempt: Attempt, memory: RankSnapshots) -> Kind | None:
        pages = [rank.page.values for rank in attempt.ranks]
        are_at_end = all(page[Field.AT_END] for page in pages)
        if not (are_at_end or attempt.reached_safe_point):
            return None  # one of them may still read the snapshot of another
        if all(page[Field.STOP_REQUEST] for page in pages):
            return Kind.STOP
        if are_at_end:
            return Kind.FINAL
        requests = sum(page[Field.CHECKPOINT_REQUESTS] for page in pages)
        if requests != self._served_requests:
            self._served_requests = requests
            self._save_reason = Reason.REQUESTED
            return Kind.SAVE
        if self._snapshots.pending and not self._may_take_beside_write(memory):
            return None
        if not self._snapshots.pending and self._schedule.is_due(attempt.step, attempt.epoch):
            self._save_reason = Reason.PERIODIC
            return Kind.SAVE
        return Kind.SNAPSHOT if time.monotonic_ns() >= self._pace.next_ns else None

    def _may_take_beside_write(self, memory: RankSnapshots) -> bool:
        """Return whether the slot for the next generation is not being written to disk."""
        newest = next(iter(memory.generations()), None)
        return all(snapshot.generation == newest for snapshot in self._snapshots.pending)

    # --- one decision ------------------------------------------------------------------------

    async def _carry_through(self, attempt: Attempt, memory: RankSnapshots, kind: Kind) -> None:
        decision = await self._announce(attempt, memory, kind)
        while decision.id not in attempt.skipped and decision.id not in memory.generations():
            passed = min(rank.page.values[Field.PLACES] for rank in attempt.ranks)
            has_come = passed >= decision.place
            await asyncio.sleep(COMPLETION_POLL_SECONDS if has_come else TICK_SECONDS)
        if (problem := attempt.skipped.get(decision.id)) is not None:
            self._give_up(attempt, decision, problem)
            return
        self._record_cost(attempt)
        # Manifests are long where there are many tensors, and this is the event loop.
        newest = next(iter(await in_thread(memory.snapshots)), None)
        if newest is None or newest.generation != decision.id:
            self._give_up(attempt, decision, "the parts of the ranks do not fit together")
            return
        if newest.manifest.differing:
            self._events.replicas_differ(newest.manifest.step, newest.manifest.differing)
        if kind is not Kind.SNAPSHOT:
            self._begin_write(newest, kind)

    async def _announce(self, attempt: Attempt, memory: RankSnapshots, kind: Kind) -> Decision:
        self._last_id += 1
        ahead = SNAPSHOT_AHEAD if kind is Kind.SNAPSHOT else 0
        pages = [rank.page.values for rank in attempt.ranks]
        deciding, slot = Deciding(pages, self._last_id, ahead), memory.next_slot()
        # From here on the ranks wait for the decision.
        deciding.begin()
        await asyncio.sleep(BARRIER_SECONDS)
        return deciding.decide(kind, slot)

    def _give_up(self, attempt: Attempt, decision: Decision, problem: str) -> None:
        if decision.kind is Kind.SNAPSHOT:
            self._pace.next_ns = time.monotonic_ns() + RETRY_SNAPSHOT_NS
        else:
            self._schedule.record_failure()
            self._events.not_taken(decision.id, attempt.step, problem)

    def _record_cost(self, attempt: Attempt) -> None:
        costs = (rank.page.values[Field.SNAPSHOT_COST_NS] for rank in attempt.ranks)
        self._pace.record(max(LEAST_COST_NS, *costs) / 1e9)
        self._snapshots.cost_seconds = self._pace.cost_seconds

    # --- writes ------------------------------------------------------------------------------

    def _begin_write(self, snapshot: Snapshot, kind: Kind) -> None:
        self._writing.append(snapshot)
        self._snapshots.write(snapshot, _REASONS.get(kind, self._save_reason))
        position = snapshot.position
        least_seconds = 0.0
        if self._budget is not None:
            # As much time between checkpoints as keeps writing within the budget.
            least_seconds = self._snapshots.last_write_seconds / self._budget
        self._schedule.begin(position.step, position.epoch, least_seconds)

    def _record_writes(self) -> None:
        for snapshot in [each for each in self._writing if each not in self._snapshots.pending]:
            self._writing.remove(snapshot)
            if self._snapshots.is_written(snapshot):
                self._schedule.record_success()
            else:
                self._schedule.record_failure()
