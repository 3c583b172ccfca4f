"""When a script's save becomes a checkpoint: a table from facts to a decision.

Rows are tried from the top, and the first that applies decides. docs/how-to/adopt-a-script.md
explains the rules to users.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from orchestrator.adopt.scan_events import Moment

# A directory that is still being written changes within this time.
QUIET_SECONDS = 1.0
# Some scripts write the parts of a checkpoint with pauses between them.
LONG_QUIET_SECONDS = 30.0


class Proof(Enum):
    """What is known about whether a save is whole."""

    NOT_EXAMINED = "not examined"
    INCOMPLETE = "incomplete"
    """Something is missing."""
    UNPROVEN = "unproven"
    """Nothing is seen to be missing, and nothing proves that all is there."""
    PROVEN = "proven"


class Decision(Enum):
    """What is done with a save now."""

    EXAMINE = "examine"
    """Find out whether it is whole, then decide again."""
    WAIT = "wait"
    SEAL = "seal"
    REJECT = "reject"
    LEAVE = "leave"
    """It is no checkpoint, and no kill has cut it off: it stays where it is."""


@dataclass(frozen=True)
class SaveFacts:
    """What a decision depends on.

    ``in_parts`` says that it comes in several files, of which none is known to be the last.
    ``quiet_seconds`` is the time without a change. ``followed`` says that the script has begun
    another save of the same kind since. ``held_open`` says that a process of the trainer had a file
    of it open for writing when that was last looked at. ``postponed`` says that sealing this path
    must wait, because it takes too large a share of the time or the disk has refused it. ``lacks``
    says that a file or directory of the unit is not there.
    """

    proof: Proof
    moment: Moment
    in_parts: bool
    quiet_seconds: float
    followed: bool = False
    postponed: bool = False
    held_open: bool = False
    lacks: bool = False


@dataclass(frozen=True)
class Condition:
    """What must hold besides the proof and the moment."""

    words: str
    holds: Callable[[SaveFacts], bool]


@dataclass(frozen=True)
class DecisionRow:
    """A row of the table: with one of these proofs, at one of these moments, where this holds."""

    proofs: frozenset[Proof]
    moments: frozenset[Moment]
    when: Condition
    decision: Decision


ALWAYS = Condition("always", lambda facts: True)
POSTPONED = Condition("sealing is postponed", lambda facts: facts.postponed)
CHANGING = Condition(
    f"one of several files has changed within {QUIET_SECONDS:g} s and no later save has begun",
    lambda facts: facts.in_parts and facts.quiet_seconds < QUIET_SECONDS and not facts.followed,
)
FOLLOWED = Condition("a later save has begun", lambda facts: facts.followed)
HELD_OPEN = Condition("a process has it open for writing", lambda facts: facts.held_open)
GONE_ON_WITHOUT = Condition(
    "a part of the unit is not there, and the script has gone on or ended well without it",
    lambda facts: facts.lacks and (facts.followed or facts.moment is Moment.SUCCEEDED),
)
LONG_QUIET = Condition(
    f"nothing has changed for {LONG_QUIET_SECONDS:g} s",
    lambda facts: facts.quiet_seconds >= LONG_QUIET_SECONDS,
)

ANY_PROOF = frozenset(Proof)
ANY_MOMENT = frozenset(Moment)
NOT_EXAMINED = frozenset({Proof.NOT_EXAMINED})
INCOMPLETE = frozenset({Proof.INCOMPLETE})
UNPROVEN = frozenset({Proof.UNPROVEN})
PROVEN = frozenset({Proof.PROVEN})
RUNNING = frozenset({Moment.RUNNING})
# Nothing is being written at these moments, and nothing was cut off before them.
ALL_WRITTEN = frozenset({Moment.FIRST_START, Moment.SUCCEEDED})

TABLE = (
    DecisionRow(ANY_PROOF, RUNNING, POSTPONED, Decision.WAIT),
    DecisionRow(ANY_PROOF, RUNNING, CHANGING, Decision.WAIT),
    DecisionRow(NOT_EXAMINED, ANY_MOMENT, ALWAYS, Decision.EXAMINE),
    DecisionRow(PROVEN, ANY_MOMENT, ALWAYS, Decision.SEAL),
    DecisionRow(UNPROVEN, ALL_WRITTEN, ALWAYS, Decision.SEAL),
    DecisionRow(UNPROVEN, RUNNING, HELD_OPEN, Decision.WAIT),
    DecisionRow(UNPROVEN, frozenset({Moment.FAILED}), HELD_OPEN, Decision.REJECT),
    DecisionRow(UNPROVEN, ANY_MOMENT, FOLLOWED, Decision.SEAL),
    # At a later start the time without a change is only known from then on.
    DecisionRow(UNPROVEN, ANY_MOMENT - {Moment.LATER_START}, LONG_QUIET, Decision.SEAL),
    DecisionRow(INCOMPLETE, ANY_MOMENT, GONE_ON_WITHOUT, Decision.LEAVE),
    DecisionRow(UNPROVEN | INCOMPLETE, RUNNING, ALWAYS, Decision.WAIT),
    DecisionRow(UNPROVEN | INCOMPLETE, ANY_MOMENT, ALWAYS, Decision.REJECT),
)


def judge(facts: SaveFacts) -> Decision:
    """Return the decision on a save."""
    return next(
        row.decision
        for row in TABLE
        if facts.proof in row.proofs and facts.moment in row.moments and row.when.holds(facts)
    )
