"""Judges the end of an attempt: diagnoses, decides, sets suspect states aside, and records it."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.exit_record import write_exit_record
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.snapshot_write_queue import SnapshotWriteQueue
from orchestrator.supervisor.recovery.diagnosis import Diagnosis, ExitFacts, diagnose
from orchestrator.supervisor.recovery.failure_budget import AttemptEnd, FailureBudget
from orchestrator.supervisor.recovery.failure_kinds import Kind
from orchestrator.supervisor.recovery.output_tail import end_of, last_lines
from orchestrator.supervisor.recovery.policy import Action, Decision, decide
from orchestrator.supervisor.run_facts import RunFacts

NOT_THERE = frozenset({Kind.IO_ERROR, Kind.HARDWARE})
NOT_READ = (
    "the script begins from zero each time: it has not read the checkpoint that it was offered, "
    "and got no further than before; name its option with --resume-arg"
)
NO_SESSION_YET = "the command has opened no Session"


@dataclass(frozen=True)
class Verdict:
    """What to do about the end of an attempt, and what people read about it.

    ``record`` is the content of exit.json, ``output`` the path of output.log. ``saved`` says what
    is saved. ``lost_steps`` counts completed steps that no checkpoint holds; None if unknown.
    ``problem`` says why the last save failed; None since one has succeeded.
    """

    diagnosis: Diagnosis
    decision: Decision
    record: dict[str, Any]
    output: str
    saved: str
    lost_steps: int | None
    problem: str | None
    not_there_yet: bool
    """Whether a network, a filesystem or a device was missing before the first safe point."""


class Judge:
    """Reaches the verdict on each attempt of a run."""

    def __init__(
        self,
        budget: FailureBudget,
        catalog: CheckpointCatalog,
        snapshots: SnapshotWriteQueue,
        facts: RunFacts,
        journal: Journal,
        command: Sequence[str],
    ) -> None:
        self._budget = budget
        self._catalog = catalog
        self._snapshots = snapshots
        self._run_facts, self._stop = facts, facts.stop
        self._journal = journal
        self._command = command
        self._log = structlog.get_logger()

    async def judge(self, attempt: Attempt) -> Verdict:
        """Return the verdict, and record it. Raises StopWantedError when a stop comes first."""
        rank = attempt.cause
        output = end_of(rank.directory.output_file)
        facts = self._facts(attempt, output)
        if attempt.final_snapshot is not None and not facts.stop_requested:
            # Before the failure is counted: progress before a failure does not make up for it.
            self._budget.refill(attempt.final_snapshot.position)
        diagnosis = diagnose(facts)
        end = AttemptEnd(
            kind=diagnosis.kind,
            fingerprint=diagnosis.fingerprint,
            step=attempt.step,
            resumed_step=attempt.resumed_step,
            loading=attempt.loading,
            rejected_snapshot=attempt.rejected_snapshot and attempt.resume_snapshot is not None,
            reached_safe_point=attempt.reached_safe_point,
            connected=attempt.shows_saves,
        )
        self._budget.record_end(end)
        decision = Decision(Action.STOP, "a stop came before it was decided")
        try:
            decision = await self._prepare(attempt, end, decide(end, self._budget))
            if decision.action is Action.GIVE_UP and attempt.adopted and attempt.adopted.is_unread:
                decision = Decision(Action.GIVE_UP, NOT_READ)
        finally:
            record = write_exit_record(
                attempt,
                outcome=diagnosis.outcome,
                kind=diagnosis.kind,
                cause=diagnosis.cause,
                fingerprint=diagnosis.fingerprint,
                stack=diagnosis.stack,
                oom_kills=facts.oom_kills,
                last_lines=last_lines(output),
                stop_requested=self._stop.source,
                decision=decision.action,
                reason=decision.reason,
            )
            self._journal.write(JournalEvent.ATTEMPT_EXITED, **record)
            self._run_facts.failures.add(record)
        if lost := rank.output.lost_bytes:
            self._log.warning(
                "the disk refused a part of the trainer's output",
                bytes=lost,
                output=str(rank.directory.output_file),
            )
        return Verdict(
            diagnosis,
            decision,
            record,
            output=str(rank.directory.output_file),
            saved=self._saved(attempt, decision),
            lost_steps=self._lost_steps(attempt),
            problem=self._run_facts.problem,
            not_there_yet=diagnosis.kind in NOT_THERE and not attempt.reached_safe_point,
        )

    def _facts(self, attempt: Attempt, output: list[str]) -> ExitFacts:
        rank = attempt.cause
        return ExitFacts(
            who="the trainer" if len(attempt.ranks) == 1 else f"rank {rank.number}",
            returncode=-signal.SIGKILL if rank.returncode is None else rank.returncode,
            connected=attempt.connected,
            reported=attempt.reported_status,
            refusal=attempt.refusal,
            stop_requested=self._stop.wanted.is_set(),
            lost_steps=self._lost_steps(attempt),
            error=rank.error(),
            hang=attempt.hang,
            oom_kills=rank.memory_watch.oom_kills(),
            output=output,
            command=self._command,
        )

    def _lost_steps(self, attempt: Attempt) -> int | None:
        if attempt.adopted is not None:
            return 0 if attempt.adopted.saved_after_stop else None
        newest = self._catalog.newest
        return max(0, attempt.last_step - (newest.manifest.step if newest else 0))

    async def _prepare(self, attempt: Attempt, end: AttemptEnd, decision: Decision) -> Decision:
        """Set aside what the decision suspects; if that is impossible, another row decides."""
        match decision.action:
            case Action.FORGET:
                self._snapshots.discard_all()
                # The checkpoint that was written from it is no better.
                await self._demote(attempt, decision.reason)
            case Action.DEMOTE:
                self._budget.demoted = True
                self._snapshots.discard_all()
                if not await self._demote(attempt, decision.reason):
                    return decide(end, self._budget)
            case Action.REQUEUE:
                # The exit status says whether everything is saved.
                await self._snapshots.wait_for(self._snapshots.pending, self._stop.kill_wanted)
        return decision

    async def _demote(self, attempt: Attempt, reason: str) -> bool:
        return await self._stop.or_stop(self._catalog.demote(attempt.resume_snapshot, reason))

    def _saved(self, attempt: Attempt, decision: Decision) -> str:
        if decision.action is Action.DEMOTE:
            return f"an older checkpoint, since {decision.reason}"
        final = attempt.final_snapshot
        if final is not None and not self._snapshots.is_written(final):
            return f"step {final.manifest.step}, in memory and being written"
        newest = self._catalog.newest
        if newest is None:
            return "nothing yet" if attempt.shows_saves else f"nothing: {NO_SESSION_YET}"
        return f"step {newest.manifest.step}, {newest.shown_path}"
