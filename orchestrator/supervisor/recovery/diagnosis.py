"""Diagnoses the end of an attempt: facts in, diagnosis out."""

import hashlib
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.exitcodes import FINAL_FOR_TRAINER, ExitStatus
from orchestrator.supervisor.recovery.failure_kinds import OTHER_SIGNAL, SIGNALS, SYMPTOMS, Kind
from orchestrator.supervisor.recovery.never_started import never_started
from orchestrator.supervisor.recovery.output_tail import fatal_stack, traceback_in

# A shell reports that a signal ended its command as 128 and the number.
SHELL_SIGNAL_BASE = 128
PYTHON_EXCEPTION_STATUS = 1
# The status of argparse, getopt, shells and Python itself.
USAGE_STATUS = 2
# The status of the command `timeout`, whatever its own command ended with.
TIMEOUT_STATUS = 124
LONGEST_MESSAGE = 300

_VOLATILE = re.compile(
    r"0x[0-9a-f]+|\b\d{4}-\d\d-\d\d[T ][\d:.,+Z-]*|\b[0-9a-f]{8,}\b"
    r"|[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?",
    re.IGNORECASE,
)
_GONE_WORKER = re.compile(r"DataLoader worker .* exited unexpectedly")


class Outcome(StrEnum):
    """The four groups of kinds; the journal and exit.json have them."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"
    REFUSED = "refused"


_OUTCOMES = {
    Kind.COMPLETE: Outcome.COMPLETE,
    Kind.STOPPED: Outcome.STOPPED,
    Kind.REFUSED: Outcome.REFUSED,
    Kind.FAILED_AFTERWARDS: Outcome.REFUSED,
}


@dataclass(frozen=True)
class ExitFacts:
    """What is known when every process of an attempt has ended.

    ``reported`` is the exit status that the session announced: a shell in between does not hide it.
    ``lost_steps`` counts completed steps that no checkpoint holds; None if unknown. ``error`` is
    the content of error.json. ``refusal`` says why a session was refused. ``hang`` says what the
    trainer was doing, if it was ended for a hang. ``who`` has ended so.
    """

    returncode: int
    connected: bool
    reported: int | None
    stop_requested: bool
    lost_steps: int | None
    error: dict[str, Any] | None = None
    refusal: str | None = None
    hang: str | None = None
    oom_kills: int = 0
    output: Sequence[str] = ()
    who: str = "the trainer"
    command: Sequence[str] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The kind of end, its ``cause`` in words for people, and the run's status unless it goes on.

    ``fingerprint`` is equal for the same defect; None for an end that shows no defect. ``stack`` is
    where a fatal signal hit, innermost frame first.
    """

    kind: Kind
    cause: str
    status: ExitStatus
    fingerprint: str | None = None
    stack: Sequence[str] = ()

    @property
    def outcome(self) -> Outcome:
        """The group of the kind."""
        return _OUTCOMES.get(self.kind, Outcome.FAILED)


def diagnose(facts: ExitFacts) -> Diagnosis:
    """Return the diagnosis of one attempt."""
    death = _death(facts)
    cause = f"{facts.who} {death.what}"
    is_configuration = death.kind is Kind.NEVER_STARTED
    status = ExitStatus.CONFIGURATION if is_configuration else ExitStatus.GAVE_UP
    failed = Diagnosis(death.kind, cause, status, death.fingerprint, death.stack)
    match facts.reported:
        case ExitStatus.COMPLETE if facts.returncode == 0 or facts.stop_requested:
            return Diagnosis(Kind.COMPLETE, "training is complete", ExitStatus.COMPLETE)
        case ExitStatus.COMPLETE:
            cause = f"training is complete and saved, but the script {death.what} afterwards"
            return Diagnosis(Kind.FAILED_AFTERWARDS, cause, ExitStatus.GAVE_UP)
        case _ if death.kind is Kind.HANG and not facts.stop_requested:
            return failed  # it may have saved and stopped, but no stop was requested
        case ExitStatus.STOPPED_UNSAVED if facts.lost_steps == 0:
            # The write that the trainer could not wait for was completed after its end.
            return Diagnosis(Kind.STOPPED, "stopped on request", ExitStatus.STOPPED_SAVED)
        case ExitStatus.STOPPED_SAVED | ExitStatus.STOPPED_UNSAVED:
            return Diagnosis(Kind.STOPPED, "stopped on request", ExitStatus(facts.reported))
    # A shell in between may end with a status of its own: the session's report counts first.
    ended_with = facts.returncode if facts.reported is None else facts.reported
    if facts.refusal is not None and not facts.connected and facts.returncode > 0:
        ended_with = ExitStatus.CONFIGURATION  # a launcher hides the session's own status
    if ended_with in FINAL_FOR_TRAINER:
        why = f"was refused: {_headline(facts.refusal)}" if facts.refusal else death.what
        return Diagnosis(Kind.REFUSED, f"the script {why}", ExitStatus(ended_with))
    if facts.stop_requested:
        saved = facts.lost_steps == 0
        status = ExitStatus.STOPPED_SAVED if saved else ExitStatus.STOPPED_UNSAVED
        return Diagnosis(Kind.STOPPED, f"{facts.who} {death.what} while stopping", status)
    if not facts.connected and facts.returncode == 0:
        return Diagnosis(Kind.COMPLETE, "the command ended with status 0", ExitStatus.COMPLETE)
    return failed


@dataclass(frozen=True)
class _Death:
    """How a process ended; ``what`` follows "the trainer"."""

    kind: Kind
    what: str
    fingerprint: str | None
    stack: Sequence[str] = ()


def _death(facts: ExitFacts) -> _Death:
    # A recorded exception says more than that the process did not end after it.
    if facts.hang is not None and facts.error is None:
        return _Death(Kind.HANG, f"hung: {facts.hang}", _digest("hang"))
    error = facts.error
    if error is None and facts.refusal is None and not facts.connected:
        said = never_started(facts.command, facts.returncode, facts.output)
        if said is not None:
            what = f"never started: {said[:LONGEST_MESSAGE]}"
            return _Death(Kind.NEVER_STARTED, what, _digest("never started"))
    if error is None and facts.returncode == PYTHON_EXCEPTION_STATUS:
        error = traceback_in(facts.output)
    if error is not None:
        return _raised(error, facts)
    if (number := _signal_of(facts.returncode)) is not None:
        return _signalled(number, facts)
    if facts.returncode == TIMEOUT_STATUS and not facts.connected:
        return _Death(Kind.TERMINATED, "was ended by the command `timeout`", None)
    mark = _digest("status", str(facts.returncode), "")
    if facts.returncode == 0:
        return _Death(Kind.ENDED_EARLY, "ended with status 0 before training was complete", mark)
    if facts.returncode == USAGE_STATUS:
        said = f" and said: {facts.output[-1][:LONGEST_MESSAGE]}" if facts.output else ""
        return _Death(Kind.USAGE, f"ended with status 2{said}", mark)
    return _Death(Kind.EXIT_STATUS, f"ended with status {facts.returncode}", mark)


def _raised(error: dict[str, Any], facts: ExitFacts) -> _Death:
    kind, message = kind_of(error), str(error.get("message", ""))
    if kind is Kind.EXCEPTION and _GONE_WORKER.search(message):
        # torch raises the error in the middle of other code, which may catch it and only log it.
        lines = (line for line in facts.output if "DataLoader worker" in line)
        kind = kind_of({"message": "\n".join(lines)})
    what = f"failed with {error.get('type')}"
    if headline := _headline(message):
        what += f": {headline}"
    if facts.oom_kills and (kind is Kind.WORKER_KILLED or "DataLoader worker" in message):
        # torch says only that a worker is gone.
        return _Death(Kind.OOM_KILLED, f"{what}; the kernel's OOM killer ended the worker", None)
    if frame := error.get("frame"):
        what += f" ({frame})"
    if thread := error.get("thread"):
        what += f" in the thread {thread}"
    parts = (str(error.get("type")), _VOLATILE.sub("#", message), str(frame))
    return _Death(kind, what, _digest(*parts))


def _signalled(number: int, facts: ExitFacts) -> _Death:
    kind, why = SIGNALS.get(number, OTHER_SIGNAL)
    name = _signal_name(number)
    if kind is Kind.KILLED and facts.oom_kills:
        return _Death(Kind.OOM_KILLED, "was ended by the kernel's OOM killer", None)
    if facts.stop_requested:  # by the supervisor, or by the sender of the stop
        return _Death(kind, f"was ended by {name}", None)
    if kind in (Kind.KILLED, Kind.TERMINATED):
        return _Death(kind, f"was ended by {name} ({why})", None)
    stack = fatal_stack(facts.output)
    where = f" at {stack[0]}" if stack else ""
    mark = _digest("signal", name, *stack[:1])
    return _Death(kind, f"was ended by {name} ({why}){where}", mark, stack)


def kind_of(error: dict[str, Any]) -> Kind:
    """Return the kind of an exception, from error.json; its causes may tell more."""
    for one in _with_causes(error):
        for symptom in SYMPTOMS:
            if symptom.matches(one):
                return symptom.kind
    return Kind.EXCEPTION


def _with_causes(error: dict[str, Any]) -> Iterator[dict[str, Any]]:
    one: Any = error
    while isinstance(one, dict):
        yield one
        one = one.get("cause")


def _signal_of(returncode: int) -> int | None:
    number = -returncode if returncode < 0 else returncode - SHELL_SIGNAL_BASE
    if returncode < 0 or number in SIGNALS:
        return number
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _headline(message: str) -> str:
    """Return the line of a message that tells most, short enough for a sentence."""
    lines = [line for line in message.splitlines() if line.strip()]
    if not lines:
        return ""
    # torch wraps a loader worker's exception: the original message is the last line.
    return lines[-1 if lines[0].startswith("Caught ") else 0][:LONGEST_MESSAGE]


def _digest(*parts: str) -> str:
    """Return a hash; the parts must be free of numbers, addresses and dates, which vary."""
    return hashlib.sha256("\0".join(parts).encode(errors="backslashreplace")).hexdigest()[:16]
