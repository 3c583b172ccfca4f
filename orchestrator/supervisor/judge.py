"""What an attempt's end comes to: diagnosed, decided, set aside what is doubted, recorded."""

import signal
from dataclasses import dataclass
from typing import Any

import structlog

from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.checkpoints.snapshot_writes import SnapshotWriteQueue
from orchestrator.supervisor.recovery.diagnosis import Diagnosis, Facts, diagnose
from orchestrator.supervisor.recovery.failure_budget import AttemptEnd, FailureBudget
from orchestrator.supervisor.recovery.output_tail import end_of, last_lines
from orchestrator.supervisor.recovery.policy import Action, Decision, decide
from orchestrator.supervisor.termination.stop_ladder import Watch


@dataclass(frozen=True)
class Verdict:
    """The end of an attempt as it is acted on and told to people.

    ``record`` is exit.json, ``output`` the file of its output, ``saved`` says what is saved,
    ``lost_steps`` how many completed steps no checkpoint holds, None where nobody knows.
    """

    diagnosis: Diagnosis
    decision: Decision
    record: dict[str, Any]
    output: str
    saved: str
    lost_steps: int | None


class Judge:
    """Finds the verdict on each attempt of a run."""

    def __init__(
        self,
        budget: FailureBudget,
        checkpoints: CheckpointCatalog,
        snapshots: SnapshotWriteQueue,
        watch: Watch,
        journal: Journal,
    ) -> None:
        self._budget = budget
        self._checkpoints = checkpoints
        self._snapshots = snapshots
        self._watch = watch
        self._journal = journal
        self._log = structlog.get_logger()

    async def judge(self, attempt: Attempt) -> Verdict:
        """Diagnose, decide, record. Raises StopWantedError when a stop comes first."""
        output = end_of(attempt.directory.output_file)
        facts = self._facts(attempt, output)
        if attempt.left is not None and not facts.stop_requested:
            # In this order: what was saved before a failure must not make up for it.
            self._budget.refill(attempt.left.position.step, attempt.left.position.epoch)
        diagnosis = diagnose(facts)
        end = AttemptEnd(
            kind=diagnosis.kind,
            fingerprint=diagnosis.fingerprint,
            step=attempt.step,
            resumed_step=attempt.resumed_step,
            loading=attempt.loading,
            rejected_snapshot=attempt.rejected and attempt.handed is not None,
            reached_safe_point=attempt.reached_safe_point,
            connected=attempt.shows_saves,
        )
        self._budget.record(end)
        decision = Decision(Action.STOP, "a stop came before it was decided")
        try:
            decision = await self._prepare(attempt, end, decide(end, self._budget))
        finally:
            record = attempt.record_end(
                outcome=diagnosis.outcome,
                kind=diagnosis.kind,
                cause=diagnosis.cause,
                fingerprint=diagnosis.fingerprint,
                stack=diagnosis.stack,
                oom_kills=facts.oom_kills,
                last_lines=last_lines(output),
                stop_requested=self._watch.stop_source,
                decision=decision.action,
                reason=decision.reason,
            )
            self._journal.write(JournalEvent.ATTEMPT_EXITED, **record)
        if lost := attempt.output.lost_bytes:
            self._log.warning(
                "the disk refused a part of the trainer's output",
                bytes=lost,
                output=str(attempt.directory.output_file),
            )
        return Verdict(
            diagnosis,
            decision,
            record,
            output=str(attempt.directory.output_file),
            saved=self._saved(attempt, decision),
            lost_steps=self._lost_steps(attempt),
        )

    def _facts(self, attempt: Attempt, output: list[str]) -> Facts:
        return Facts(
            returncode=-signal.SIGKILL if attempt.returncode is None else attempt.returncode,
            connected=attempt.connected,
            reported=attempt.reported,
            stop_requested=self._watch.stop_wanted.is_set(),
            lost_steps=self._lost_steps(attempt),
            error=attempt.error(),
            hang=attempt.hang,
            oom_kills=attempt.evidence.oom_kills(),
            output=output,
        )

    def _lost_steps(self, attempt: Attempt) -> int | None:
        if attempt.adopted is not None:
            return 0 if attempt.adopted.saved_after_stop else None
        newest = self._checkpoints.newest
        return max(0, attempt.last_step - (newest.manifest.step if newest else 0))

    async def _prepare(self, attempt: Attempt, end: AttemptEnd, decision: Decision) -> Decision:
        """Set aside what the decision doubts; where that cannot be, another row decides."""
        match decision.action:
            case Action.FORGET:
                self._snapshots.forget()
                # What was written from it is no better.
                await self._demote(attempt, decision.reason)
            case Action.DEMOTE:
                self._budget.demoted = True
                self._snapshots.forget()
                if not await self._demote(attempt, decision.reason):
                    return decide(end, self._budget)
            case Action.REQUEUE:
                # The status is to say whether all is saved.
                await self._snapshots.settle(self._snapshots.under_way, self._watch.kill_wanted)
        return decision

    async def _demote(self, attempt: Attempt, reason: str) -> bool:
        return await self._watch.unless_stopped(self._checkpoints.demote(attempt.handed, reason))

    def _saved(self, attempt: Attempt, decision: Decision) -> str:
        if decision.action is Action.DEMOTE:
            return f"an older checkpoint, since {decision.reason}"
        if attempt.left is not None and not self._snapshots.is_durable(attempt.left):
            return f"step {attempt.left.manifest.step}, in memory and being written"
        newest = self._checkpoints.newest
        return f"step {newest.manifest.step}, {newest.shown_path}" if newest else "nothing yet"
