"""When a save becomes a checkpoint: the decision table, row by row and as a whole."""

import itertools
from typing import Any

import pytest

from orchestrator.adopt.scan_events import Moment
from orchestrator.adopt.seal_policy import (
    LONG_QUIET_SECONDS,
    QUIET_SECONDS,
    TABLE,
    Decision,
    Proof,
    SaveFacts,
    judge,
)


def facts(proof: Proof, moment: Moment, **changes: Any) -> SaveFacts:
    """The facts of a single file that has just been written, but for ``changes``."""
    usual: dict[str, Any] = {"in_parts": False, "quiet_seconds": 0.0}
    return SaveFacts(proof, moment, **(usual | changes))


DIRECTORY = {"in_parts": True}
QUIET = {"quiet_seconds": QUIET_SECONDS}
LONG_QUIET = {"quiet_seconds": LONG_QUIET_SECONDS}
FOLLOWED = {"followed": True}
HELD_OPEN = {"held_open": True}
POSTPONED = {"postponed": True}
LACKS = {"lacks": True}


@pytest.mark.parametrize(
    ("proof", "moment", "changes", "decision"),
    [
        # What is not examined yet is examined, but for a directory that is being written.
        (Proof.NOT_EXAMINED, Moment.RUNNING, {}, Decision.EXAMINE),
        (Proof.NOT_EXAMINED, Moment.RUNNING, DIRECTORY, Decision.WAIT),
        (Proof.NOT_EXAMINED, Moment.RUNNING, DIRECTORY | QUIET, Decision.EXAMINE),
        (Proof.NOT_EXAMINED, Moment.RUNNING, DIRECTORY | FOLLOWED, Decision.EXAMINE),
        (Proof.NOT_EXAMINED, Moment.RUNNING, LONG_QUIET | POSTPONED, Decision.WAIT),
        (Proof.NOT_EXAMINED, Moment.FIRST_START, DIRECTORY, Decision.EXAMINE),
        (Proof.NOT_EXAMINED, Moment.LATER_START, DIRECTORY, Decision.EXAMINE),
        (Proof.NOT_EXAMINED, Moment.SUCCEEDED, DIRECTORY | POSTPONED, Decision.EXAMINE),
        (Proof.NOT_EXAMINED, Moment.FAILED, DIRECTORY | POSTPONED, Decision.EXAMINE),
        # What is proven whole is sealed.
        (Proof.PROVEN, Moment.RUNNING, {}, Decision.SEAL),
        (Proof.PROVEN, Moment.RUNNING, POSTPONED, Decision.WAIT),
        (Proof.PROVEN, Moment.RUNNING, DIRECTORY, Decision.WAIT),
        (Proof.PROVEN, Moment.RUNNING, DIRECTORY | QUIET, Decision.SEAL),
        (Proof.PROVEN, Moment.FIRST_START, {}, Decision.SEAL),
        (Proof.PROVEN, Moment.LATER_START, {}, Decision.SEAL),
        (Proof.PROVEN, Moment.SUCCEEDED, POSTPONED, Decision.SEAL),
        (Proof.PROVEN, Moment.FAILED, {}, Decision.SEAL),
        # What is not proven needs a reason to be believed.
        (Proof.UNPROVEN, Moment.RUNNING, QUIET, Decision.WAIT),
        (Proof.UNPROVEN, Moment.RUNNING, LONG_QUIET, Decision.SEAL),
        (Proof.UNPROVEN, Moment.RUNNING, LONG_QUIET | POSTPONED, Decision.WAIT),
        (Proof.UNPROVEN, Moment.RUNNING, FOLLOWED, Decision.SEAL),
        # A file that is still open for writing may rest for as long as it likes.
        (Proof.UNPROVEN, Moment.RUNNING, LONG_QUIET | HELD_OPEN, Decision.WAIT),
        (Proof.UNPROVEN, Moment.FAILED, LONG_QUIET | HELD_OPEN, Decision.REJECT),
        (Proof.UNPROVEN, Moment.SUCCEEDED, HELD_OPEN, Decision.SEAL),
        (Proof.PROVEN, Moment.RUNNING, HELD_OPEN, Decision.SEAL),
        (Proof.UNPROVEN, Moment.FIRST_START, {}, Decision.SEAL),
        (Proof.UNPROVEN, Moment.SUCCEEDED, {}, Decision.SEAL),
        (Proof.UNPROVEN, Moment.LATER_START, {}, Decision.REJECT),
        (Proof.UNPROVEN, Moment.LATER_START, LONG_QUIET, Decision.REJECT),
        (Proof.UNPROVEN, Moment.LATER_START, FOLLOWED, Decision.SEAL),
        (Proof.UNPROVEN, Moment.FAILED, QUIET, Decision.REJECT),
        (Proof.UNPROVEN, Moment.FAILED, LONG_QUIET, Decision.SEAL),
        (Proof.UNPROVEN, Moment.FAILED, FOLLOWED, Decision.SEAL),
        # What lacks something may still be written while a trainer runs, and not after that.
        (Proof.INCOMPLETE, Moment.RUNNING, LONG_QUIET | FOLLOWED, Decision.WAIT),
        (Proof.INCOMPLETE, Moment.FIRST_START, {}, Decision.REJECT),
        (Proof.INCOMPLETE, Moment.LATER_START, {}, Decision.REJECT),
        (Proof.INCOMPLETE, Moment.SUCCEEDED, {}, Decision.REJECT),
        (Proof.INCOMPLETE, Moment.FAILED, LONG_QUIET | FOLLOWED, Decision.REJECT),
        # A part of a unit that no kill has kept from coming costs the others nothing.
        (Proof.INCOMPLETE, Moment.RUNNING, LACKS | LONG_QUIET, Decision.WAIT),
        (Proof.INCOMPLETE, Moment.RUNNING, LACKS | FOLLOWED, Decision.LEAVE),
        (Proof.INCOMPLETE, Moment.FAILED, LACKS, Decision.REJECT),
        (Proof.INCOMPLETE, Moment.FAILED, LACKS | FOLLOWED, Decision.LEAVE),
        (Proof.INCOMPLETE, Moment.LATER_START, LACKS, Decision.REJECT),
        (Proof.INCOMPLETE, Moment.SUCCEEDED, LACKS, Decision.LEAVE),
    ],
)
def test_decision_of_the_table(
    proof: Proof, moment: Moment, changes: dict[str, Any], decision: Decision
) -> None:
    """Each row decides as adopt-a-script.md promises."""
    assert judge(facts(proof, moment, **changes)) is decision


ALL_FACTS = [
    SaveFacts(proof, moment, *rest)
    for proof, moment, *rest in itertools.product(
        Proof,
        Moment,
        (False, True),
        (0.0, QUIET_SECONDS, LONG_QUIET_SECONDS),
        (False, True),
        (False, True),
        (False, True),
        (False, True),
    )
]


def test_every_combination_of_facts_has_a_decision() -> None:
    """The table is complete, and every row of it decides something."""
    deciding = set()
    for each in ALL_FACTS:
        judge(each)
        rows = (
            row
            for row in TABLE
            if each.proof in row.proofs and each.moment in row.moments and row.when.holds(each)
        )
        deciding.add(next(rows))
    assert deciding == set(TABLE)


def test_incomplete_save_is_never_sealed() -> None:
    """Whatever else is the case, a save that lacks something does not become a checkpoint."""
    decisions = {judge(each) for each in ALL_FACTS if each.proof is Proof.INCOMPLETE}
    assert decisions == {Decision.WAIT, Decision.REJECT, Decision.LEAVE}
    kept = [each for each in ALL_FACTS if not each.lacks]
    assert Decision.LEAVE not in map(judge, kept)


def test_examined_save_is_not_examined_again() -> None:
    """A decision on an examined save is final until the save changes or the moment does."""
    examined = [each for each in ALL_FACTS if each.proof is not Proof.NOT_EXAMINED]
    assert all(judge(each) is not Decision.EXAMINE for each in examined)


def test_nothing_is_rejected_while_a_trainer_runs() -> None:
    """A save that looks unfinished may be under way."""
    running = [each for each in ALL_FACTS if each.moment is Moment.RUNNING]
    assert all(judge(each) is not Decision.REJECT for each in running)
