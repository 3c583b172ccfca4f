"""Carries out a verdict: moves the state machine, writes the journal, and tells people."""

from typing import assert_never

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.supervisor import report
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.judge import Verdict
from orchestrator.supervisor.recovery.failure_kinds import Kind
from orchestrator.supervisor.recovery.policy import Action
from orchestrator.supervisor.state_machine import Event, StateMachine


def carry_out(
    verdict: Verdict,
    attempt: Attempt,
    newest: Checkpoint | None,
    machine: StateMachine,
    journal: Journal,
) -> ExitStatus | None:
    """Carry out the verdict; return the status that ends the run, None if it goes on."""
    diagnosis, decision = verdict.diagnosis, verdict.decision
    status = diagnosis.status
    match decision.action:
        case Action.FINISH:
            machine.handle(Event.COMPLETE)
            journal.write(JournalEvent.RUN_COMPLETED, attempt.number, step=attempt.step)
            report.log_completion(verdict)
        case Action.STOP:
            machine.handle(Event.STOP)
            journal.write(
                JournalEvent.RUN_STOPPED, attempt.number, status=status, step=attempt.step
            )
            reads_nothing = attempt.adopted is not None and attempt.adopted.is_unread
            report.log_stop(report.stop_of(verdict, newest, begins_anew=reads_nothing))
        case Action.RETRY | Action.DEMOTE | Action.FORGET:
            machine.handle(Event.RETRY)
            return None
        case Action.REQUEUE:
            machine.handle(Event.STOP)
            lost = verdict.lost_steps != 0
            status = ExitStatus.STOPPED_UNSAVED if lost else ExitStatus.STOPPED_SAVED
            journal.write(
                JournalEvent.RUN_STOPPED,
                attempt.number,
                status=status,
                step=attempt.step,
                reason=decision.reason,
            )
            report.log_failure(verdict, f"ended: {decision.reason}")
        case Action.GIVE_UP:
            machine.handle(Event.GIVE_UP)
            if diagnosis.kind is Kind.STOPPED:
                status = ExitStatus.GAVE_UP
            journal.write(
                JournalEvent.GAVE_UP,
                attempt.number,
                cause=diagnosis.cause,
                reason=decision.reason,
                status=status,
            )
            report.log_give_up(verdict)
        case _:
            assert_never(decision.action)
    return status
