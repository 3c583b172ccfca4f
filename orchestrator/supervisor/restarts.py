"""Whether to start the trainer again, and after how long: policies as values, facts in.

The budget counts failures since the last published checkpoint. It is read from the journal at the
start, so that a requeue or a reboot does not refill it; uptime never does.
"""

import copy
import hashlib
import re
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import tenacity

from orchestrator.journal import JournalEvent

FIRST_DELAY_SECONDS = 0.0
SECOND_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 60.0
JITTER_SECONDS = 0.5
# A shell reports that a signal ended its command as 128 and the number.
SHELL_SIGNAL_BASE = 128

_VOLATILE = re.compile(
    r"0x[0-9a-f]+|\b\d{4}-\d\d-\d\d[T ][\d:.,+Z-]*|\b[0-9a-f]{8,}\b"
    r"|[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?",
    re.IGNORECASE,
)
# These come from outside, so that two at the same step are chance and not a defect of the script.
_OUTSIDE_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


@dataclass(frozen=True)
class Failure:
    """How an attempt failed: ``cause`` for people, ``fingerprint`` to recognise it again.

    ``resumed_step`` is None unless the session said that it had resumed: a script that failed
    before that says nothing about the checkpoint.
    """

    cause: str
    fingerprint: str | None
    step: int
    resumed_step: int | None
    before_first_safe_point: bool


@dataclass(frozen=True)
class Retry:
    """Start again; ``demote`` says that the checkpoint resumed from may be the cause."""

    demote: bool = False


@dataclass(frozen=True)
class GiveUp:
    """Do not start again, for this reason."""

    reason: str


@dataclass
class Budget:
    """Failures since the last published checkpoint, against how many are allowed."""

    allowed: int
    failures: list[tuple[str | None, int]] = field(default_factory=list)
    not_passed: list[tuple[str | None, int]] = field(default_factory=list)
    """Failures at steps beyond which no checkpoint has come, whatever was saved before them."""
    demoted: bool = False
    ever_safe: bool = False
    furthest: tuple[int, int] = (0, 0)

    @property
    def spent(self) -> int:
        """How many failures count now."""
        return len(self.failures)

    def refill(self, step: int, epoch: int) -> None:
        """Start counting anew if this published checkpoint is further than any before it.

        Publishing the same steps again after each restart is no progress.
        """
        if (step, epoch) <= self.furthest:
            return
        self.furthest = (step, epoch)
        self.failures.clear()
        self.not_passed = [failure for failure in self.not_passed if failure[1] >= step]
        self.demoted = False
        self.ever_safe = True

    def record(self, failure: Failure) -> None:
        """Count a failure; do it before deciding."""
        self._note(failure.fingerprint, failure.step)
        self.ever_safe = self.ever_safe or not failure.before_first_safe_point

    def _note(self, fingerprint: str | None, step: int) -> None:
        self.failures.append((fingerprint, step))
        self.not_passed.append((fingerprint, step))

    @classmethod
    def from_journal(cls, allowed: int, events: list[dict[str, Any]]) -> "Budget":
        """What earlier supervisors of this run left."""
        budget = cls(allowed)
        for event in events:
            match event["event"]:
                case JournalEvent.CHECKPOINT_PUBLISHED if event.get("healthy", True):
                    budget.refill(_count(event, "step"), _count(event, "epoch"))
                case JournalEvent.CHECKPOINT_QUARANTINED if event.get("demoted"):
                    budget.demoted = True
                case JournalEvent.ATTEMPT_EXITED:
                    if event.get("left_step") is not None:
                        budget.refill(_count(event, "left_step"), _count(event, "left_epoch"))
                    budget.ever_safe = budget.ever_safe or bool(event.get("reached_safe_point"))
                    if event.get("outcome") == "failed":
                        budget._note(event.get("fingerprint"), _count(event, "step"))
                case JournalEvent.GAVE_UP:
                    # A person who runs it again after that has changed something. But without
                    # progress no rerun may set aside yet another checkpoint.
                    budget.failures.clear()
                    budget.not_passed.clear()
        return budget


def _count(event: dict[str, Any], key: str) -> int:
    value = event.get(key)
    return value if isinstance(value, int) else 0


def decide(failure: Failure, budget: Budget) -> Retry | GiveUp:
    """The decision for a failure that ``budget`` has already counted."""
    from_outside = failure.fingerprint is None
    if failure.before_first_safe_point and not budget.ever_safe and not from_outside:
        return GiveUp("it failed before the first step was done, and a restart would fail too")
    same = budget.not_passed.count((failure.fingerprint, failure.step))
    if not from_outside and same >= 2:
        right_after_resuming = (
            failure.resumed_step is not None and failure.step - failure.resumed_step <= 1
        )
        if right_after_resuming and not budget.demoted:
            return Retry(demote=True)
        return GiveUp(f"the same failure came again at step {failure.step}")
    if budget.spent > budget.allowed:
        return GiveUp(
            f"{budget.spent} failures without a new checkpoint between them; "
            f"--max-restarts allows {budget.allowed}"
        )
    return Retry()


def fingerprint(error: dict[str, Any] | None, returncode: int) -> str | None:
    """A digest that is equal for the same defect, None for an end that says nothing of one.

    ``error`` is error.json: the exception's type, message and innermost frame. Numbers, addresses,
    dates and hashes in the message are left out, since they differ from one time to the next.
    """
    if error is not None:
        message = _VOLATILE.sub("#", str(error.get("message", "")))
        parts = (str(error.get("type")), message, str(error.get("frame")))
    elif (-returncode if returncode < 0 else returncode - SHELL_SIGNAL_BASE) in _OUTSIDE_SIGNALS:
        return None
    else:
        parts = ("status", str(returncode), "")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class AttemptFailedError(Exception):
    """Tells tenacity that an attempt failed and may be repeated."""


class _StopWhenGivenUp(tenacity.stop.stop_base):
    """Stops when the decision on the last failure, made from the shared budget, was to give up."""

    def __init__(self, given_up: Callable[[], bool]) -> None:
        self._given_up = given_up

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return self._given_up()


class _WaitByBudget(tenacity.wait.wait_base):
    """Another wait, asked as if the attempts had begun at the last checkpoint.

    tenacity counts attempts over its whole call, which here is the whole run, so that its own
    exponential wait would never become short again.
    """

    def __init__(self, budget: Budget, wait: tenacity.wait.wait_base) -> None:
        self._budget = budget
        self._wait = wait

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        state = copy.copy(retry_state)
        state.attempt_number = max(1, self._budget.spent)
        return self._wait(state)


def retrying(
    budget: Budget, given_up: Callable[[], bool], sleep: Callable[[float], Awaitable[None]]
) -> tenacity.AsyncRetrying:
    """Tenacity's loop over attempts: at once after the first failure, then 1 s, 2 s, ... 60 s."""
    later = tenacity.wait_exponential_jitter(
        multiplier=SECOND_DELAY_SECONDS / 2, max=LONGEST_DELAY_SECONDS, jitter=JITTER_SECONDS
    )
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(AttemptFailedError),
        stop=_StopWhenGivenUp(given_up),
        wait=_WaitByBudget(
            budget, tenacity.wait_chain(tenacity.wait_fixed(FIRST_DELAY_SECONDS), later)
        ),
        sleep=sleep,
        reraise=True,
    )
