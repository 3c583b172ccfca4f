"""The restart policy: a table that decides what follows the end of an attempt.

Rows are tried from the top, and the first that applies decides (docs/explanation/restarts.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.supervisor.recovery.failure_budget import (
    NO_FAILURES,
    OUTSIDE,
    AttemptEnd,
    FailureBudget,
)
from orchestrator.supervisor.recovery.failure_kinds import Kind

# This many stops that saved nothing prove nothing yet, however few restarts are allowed.
LEAST_SLICES = 3
# This many kills from outside in a row, each while the same checkpoint was loaded, may be chance.
LOADING_KILLS_BY_CHANCE = 3
HARDWARE_TRIES = 2
# A failure this soon after resuming may come from the state that was resumed.
STEPS_AFTER_RESUMING = 1


class Action(StrEnum):
    """What follows; in exit.json it is the ``decision``."""

    FINISH = "finish"
    STOP = "stop"
    RETRY = "retry"
    DEMOTE = "demote"
    FORGET = "forget"
    REQUEUE = "requeue"
    GIVE_UP = "give_up"


# Actions after which the trainer is started again.
RETRIES = frozenset({Action.RETRY, Action.DEMOTE, Action.FORGET})


@dataclass(frozen=True)
class Condition:
    """What must hold besides the kind; the documentation has the same ``words``."""

    words: str
    holds: Callable[[AttemptEnd, FailureBudget], bool]


@dataclass(frozen=True)
class DecisionRow:
    """The action for these kinds of end if the condition holds; people read the ``reason``."""

    kinds: frozenset[Kind]
    when: Condition
    action: Action
    reason: str


@dataclass(frozen=True)
class Decision:
    """What to do about the end of an attempt, and why."""

    action: Action
    reason: str


def _came_again(end: AttemptEnd, budget: FailureBudget) -> bool:
    same = [e for e in budget.not_passed if (e.fingerprint, e.step) == (end.fingerprint, end.step)]
    return end.fingerprint is not None and len(same) > 1


def _right_after_resuming(end: AttemptEnd) -> bool:
    return end.resumed_step is not None and end.step - end.resumed_step <= STEPS_AFTER_RESUMING


def _deaths_in_loading(end: AttemptEnd, budget: FailureBudget) -> list[AttemptEnd]:
    """Return the ends in a row, up to this one, that came while loading what this one loaded."""
    if end.loading is None:
        return []
    deaths = [end]
    for earlier in reversed(budget.not_passed[:-1]):
        if earlier.loading == end.loading:
            deaths.append(earlier)
        elif earlier.resumed_step == end.loading.step:
            break  # it can be loaded
    return deaths


def _loading_again(end: AttemptEnd, budget: FailureBudget) -> bool:
    deaths = _deaths_in_loading(end, budget)
    return len(deaths) > 1 and any(death.kind is not Kind.KILLED for death in deaths)


def _killed_while_loading(end: AttemptEnd, budget: FailureBudget) -> bool:
    chance = max(1, min(LOADING_KILLS_BY_CHANCE, budget.allowed))
    return len(_deaths_in_loading(end, budget)) > chance


ALWAYS = Condition("", lambda end, budget: True)
NEVER_SAFE = Condition(
    "no attempt of the run has reached a safe point",
    lambda end, budget: not budget.ever_safe,
)
SNAPSHOT_REJECTED = Condition(
    "the snapshot in memory could not be loaded",
    lambda end, budget: end.rejected_snapshot,
)
LOADING_AGAIN = Condition(
    "twice in a row while loading the same checkpoint, not both times `killed`, and no checkpoint "
    "has been set aside since the run last got further",
    lambda end, budget: _loading_again(end, budget) and not budget.demoted,
)
KILLED_WHILE_LOADING = Condition(
    f"more than {LOADING_KILLS_BY_CHANCE} times in a row while loading the same checkpoint, or "
    "more than once and than --max-restarts, and no checkpoint has been set aside since the run "
    "last got further",
    lambda end, budget: _killed_while_loading(end, budget) and not budget.demoted,
)
AGAIN_AFTER_RESUMING = Condition(
    "the same failure at the same step, within one step after resuming, and no checkpoint has been "
    "set aside since the run last got further",
    lambda end, budget: (
        _came_again(end, budget) and _right_after_resuming(end) and not budget.demoted
    ),
)
AGAIN = Condition("the same failure at the same step", _came_again)
SHORT_SLICES = Condition(
    f"more kills from outside than --max-restarts, and more than {LEAST_SLICES}, since the run "
    "last got further",
    lambda end, budget: budget.slices > max(budget.allowed, LEAST_SLICES),
)
BEFORE_SESSION = Condition(
    "the command has not opened a session",
    lambda end, budget: not end.connected,
)
BUDGET_SPENT = Condition(
    "more failures than --max-restarts since the run last got further",
    lambda end, budget: budget.spent > budget.allowed,
)
TIME_IS_UP = Condition(
    "the time of --give-up-after is over",
    lambda end, budget: budget.time_is_up,
)
ATTEMPTS_SPENT = Condition(
    "all attempts of --max-attempts were made",
    lambda end, budget: budget.attempts_are_spent,
)
HARDWARE_AGAIN = Condition(
    "twice since the run last got further",
    lambda end, budget: sum(e.kind is Kind.HARDWARE for e in budget.failures) >= HARDWARE_TRIES,
)

ALL = frozenset(Kind)
FAILURES = ALL - NO_FAILURES
SCRIPT = frozenset(
    {
        Kind.NEVER_STARTED,
        Kind.ENDED_EARLY,
        Kind.EXIT_STATUS,
        Kind.USAGE,
        Kind.EXCEPTION,
        Kind.IMPORT_ERROR,
        Kind.CUDA_ERROR,
        Kind.CRASHED,
        Kind.SIGNAL,
    }
)
# These come again where nothing has changed; but no checkpoint is to blame for them.
SHORTAGE = frozenset({Kind.MEMORY_ERROR, Kind.SHARED_MEMORY_FULL, Kind.CUDA_OUT_OF_MEMORY})
# What a restored state may cause in a script: it does not change imports or arguments.
POISON = SCRIPT - {Kind.NEVER_STARTED, Kind.IMPORT_ERROR, Kind.USAGE}
LOADER_DEATHS = POISON | {Kind.KILLED, Kind.OOM_KILLED, Kind.HANG}

_SHORT_SLICES_REASON = (
    "each attempt is shorter than the checkpoint interval: {slices} times the run was "
    "ended from outside before a new checkpoint was published; save more often (--every), or let "
    "it run longer at a time"
)

TABLE = (
    DecisionRow(frozenset({Kind.COMPLETE}), ALWAYS, Action.FINISH, "training is complete"),
    DecisionRow(
        FAILURES | {Kind.STOPPED}, TIME_IS_UP, Action.GIVE_UP, "the time of --give-up-after is over"
    ),
    DecisionRow(
        FAILURES, ATTEMPTS_SPENT, Action.GIVE_UP, "all {attempts} attempts of --max-attempts failed"
    ),
    DecisionRow(frozenset({Kind.STOPPED}), SHORT_SLICES, Action.GIVE_UP, _SHORT_SLICES_REASON),
    DecisionRow(frozenset({Kind.STOPPED}), ALWAYS, Action.STOP, "a stop was requested"),
    DecisionRow(
        frozenset({Kind.REFUSED, Kind.FAILED_AFTERWARDS}),
        ALWAYS,
        Action.GIVE_UP,
        "a restart would not help",
    ),
    DecisionRow(
        SCRIPT | SHORTAGE,
        NEVER_SAFE,
        Action.GIVE_UP,
        "it failed before its first safe point or checkpoint, and a restart would fail too",
    ),
    DecisionRow(
        SCRIPT,
        SNAPSHOT_REJECTED,
        Action.FORGET,
        "the snapshot in memory cannot be loaded, so a checkpoint takes its place",
    ),
    DecisionRow(
        LOADER_DEATHS,
        LOADING_AGAIN,
        Action.DEMOTE,
        "loading the checkpoint of step {loading} ended the trainer twice",
    ),
    DecisionRow(
        frozenset({Kind.KILLED}),
        KILLED_WHILE_LOADING,
        Action.DEMOTE,
        "each of the last {deaths} kills came while the checkpoint of step {loading} was loaded",
    ),
    DecisionRow(
        POISON,
        AGAIN_AFTER_RESUMING,
        Action.DEMOTE,
        "the same failure came twice right after resuming from step {resumed}",
    ),
    DecisionRow(
        SCRIPT | SHORTAGE | {Kind.HANG},
        AGAIN,
        Action.GIVE_UP,
        "the same failure came again at step {step}",
    ),
    DecisionRow(OUTSIDE, SHORT_SLICES, Action.GIVE_UP, _SHORT_SLICES_REASON),
    DecisionRow(
        frozenset({Kind.TERMINATED}),
        BEFORE_SESSION,
        Action.REQUEUE,
        "a stop reached the command before it opened a session; run the same command again",
    ),
    DecisionRow(
        ALL,
        BUDGET_SPENT,
        Action.GIVE_UP,
        "{spent} failures without a new checkpoint; --max-restarts allows {allowed}",
    ),
    DecisionRow(
        frozenset({Kind.HARDWARE}),
        HARDWARE_AGAIN,
        Action.REQUEUE,
        "this machine is to blame: run the command again on another, or once it is repaired",
    ),
    DecisionRow(ALL, ALWAYS, Action.RETRY, "it may not happen again"),
)


def decide(end: AttemptEnd, budget: FailureBudget) -> Decision:
    """Return the decision on an end that ``budget`` has already counted."""
    row = next(r for r in TABLE if end.kind in r.kinds and r.when.holds(end, budget))
    reason = row.reason.format(
        step=end.step,
        resumed=end.resumed_step,
        loading=end.loading.step if end.loading else None,
        deaths=len(_deaths_in_loading(end, budget)),
        slices=budget.slices,
        attempts=budget.attempts,
        spent=budget.spent,
        allowed=budget.allowed,
    )
    return Decision(row.action, reason)
