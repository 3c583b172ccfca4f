"""What follows from a verdict: the machine moves on, the journal and people are told."""

from typing import assert_never

import structlog

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.supervisor import report
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.judge import Verdict
from orchestrator.supervisor.recovery.backoff import AttemptFailedError
from orchestrator.supervisor.recovery.policy import Action
from orchestrator.supervisor.recovery.symptoms import Kind
from orchestrator.supervisor.state_machine import Event, StateMachine


def act(
    verdict: Verdict,
    attempt: Attempt,
    newest: Checkpoint | None,
    machine: StateMachine,
    journal: Journal,
) -> ExitStatus:
    """Move on as decided; the status that the run ends with.

    Raises AttemptFailedError when the attempt is to be repeated.
    """
    diagnosis, decision = verdict.diagnosis, verdict.decision
    status = diagnosis.status
    match decision.action:
        case Action.FINISH:
            machine.handle(Event.COMPLETE)
            journal.write(JournalEvent.RUN_COMPLETED, attempt.number, step=attempt.step)
            log = structlog.get_logger()
            log.info(diagnosis.cause, step=attempt.step, epoch=attempt.epoch)
        case Action.STOP:
            machine.handle(Event.STOP)
            journal.write(
                JournalEvent.RUN_STOPPED, attempt.number, status=status, step=attempt.step
            )
            report.tell_of_stop(verdict, newest)
        case Action.RETRY | Action.DEMOTE | Action.FORGET:
            machine.handle(Event.RETRY)
            raise AttemptFailedError(diagnosis.cause)
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
            report.tell_of_death(verdict, f"ended: {decision.reason}")
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
            report.tell_of_death(verdict, f"gave up: {decision.reason}; {report.FIX_AND_RUN_AGAIN}")
        case _:
            assert_never(decision.action)
    return status
