"""What the end of an attempt means: facts in, verdict out."""

import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.exitcodes import FINAL_FOR_TRAINER, ExitStatus


class Outcome(StrEnum):
    """The kinds of end, as they stand in the journal and in exit.json."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True)
class Facts:
    """What is known when every process of an attempt has ended.

    ``reported`` is the exit status that the session announced, which survives a shell in between;
    ``lost_steps`` counts completed steps that no checkpoint holds.
    """

    returncode: int
    connected: bool
    reported: int | None
    stop_requested: bool
    lost_steps: int
    error: dict[str, Any] | None


@dataclass(frozen=True)
class Verdict:
    """The outcome, the status that the run ends with unless it goes on, and words for people."""

    outcome: Outcome
    status: ExitStatus
    cause: str


def judge(facts: Facts) -> Verdict:
    """The verdict on one attempt."""
    match facts.reported:
        case ExitStatus.COMPLETE if facts.returncode == 0 or facts.stop_requested:
            return Verdict(Outcome.COMPLETE, ExitStatus.COMPLETE, "training is complete")
        case ExitStatus.COMPLETE:
            cause = f"training is complete and saved, but the script {_end(facts)} afterwards"
            return Verdict(Outcome.REFUSED, ExitStatus.GAVE_UP, cause)
        case ExitStatus.STOPPED_UNSAVED if facts.lost_steps == 0:
            # What the trainer could not wait for any more has been written after its end.
            return Verdict(Outcome.STOPPED, ExitStatus.STOPPED_SAVED, "stopped on request")
        case ExitStatus.STOPPED_SAVED | ExitStatus.STOPPED_UNSAVED:
            return Verdict(Outcome.STOPPED, ExitStatus(facts.reported), "stopped on request")
    # A shell in between may end with a status of its own; what the session said counts first.
    ended_with = facts.returncode if facts.reported is None else facts.reported
    if ended_with in FINAL_FOR_TRAINER:
        status = ExitStatus(ended_with)
        return Verdict(Outcome.REFUSED, status, f"the script {_end(facts)}")
    if facts.stop_requested:
        status = ExitStatus.STOPPED_UNSAVED if facts.lost_steps else ExitStatus.STOPPED_SAVED
        return Verdict(Outcome.STOPPED, status, f"the trainer {_end(facts)} while stopping")
    if not facts.connected and facts.returncode == 0:
        return Verdict(Outcome.COMPLETE, ExitStatus.COMPLETE, "the command ended with status 0")
    return Verdict(Outcome.FAILED, ExitStatus.GAVE_UP, f"the trainer {_end(facts)}")


def _end(facts: Facts) -> str:
    if facts.error is not None:
        return f"failed with {facts.error.get('type')}: {facts.error.get('message')}"
    if facts.returncode < 0:
        try:
            return f"was ended by {signal.Signals(-facts.returncode).name}"
        except ValueError:
            return f"was ended by signal {-facts.returncode}"
    if facts.returncode == 0:
        return (
            "ended with status 0 before training was complete (to end early on purpose, "
            "leave the `with Session(...)` block)"
        )
    return f"ended with status {facts.returncode}"
