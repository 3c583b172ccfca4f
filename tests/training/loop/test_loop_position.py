"""Which places of a loop a run can be resumed from, and with which doubts."""

import pytest

from orchestrator.training.loop.loop_position import InEpoch, InStep, LoopPosition

OWN_BATCHES = ["the epoch starts over, since its batches do not come from session.batches()"]
EVALUATION = ["it was made inside an evaluation between two steps, which does not run again"]


@pytest.mark.parametrize(
    ("position", "step", "resumable"),
    [
        (LoopPosition(), 0, True),
        (LoopPosition(has_batches=True), 3, True),
        (InStep(number=4), 4, False),
        (InStep(number=4), 5, True),
        (InEpoch(began_at=4), 4, True),
        (InEpoch(began_at=4), 5, False),
        (InEpoch(began_at=4), 6, True),
        (InEpoch(began_at=4, has_batches=True), 5, True),
    ],
    ids=repr,
)
def test_resumable_places(position: LoopPosition, step: int, resumable: bool) -> None:
    """A run resumes between steps, and not after the only step of an epoch that may be over."""
    assert position.is_resumable(step) is resumable


@pytest.mark.parametrize(
    ("position", "step", "in_evaluation", "caveats"),
    [
        (LoopPosition(), 3, True, []),
        (LoopPosition(has_batches=True), 3, False, []),
        (LoopPosition(has_batches=True), 3, True, EVALUATION),
        (InStep(number=2), 3, False, []),
        (InStep(number=2), 3, True, EVALUATION),
        (InEpoch(began_at=2), 2, True, []),
        (InEpoch(began_at=2), 4, False, OWN_BATCHES),
        (InEpoch(began_at=2), 4, True, OWN_BATCHES),
        (InEpoch(began_at=2, has_batches=True), 4, False, []),
        (InEpoch(began_at=2, has_batches=True), 4, True, EVALUATION),
    ],
    ids=repr,
)
def test_doubts_about_a_place(
    position: LoopPosition, step: int, in_evaluation: bool, caveats: list[str]
) -> None:
    """An evaluation between two steps does not run again; unknown batches start over."""
    assert position.caveats(step, in_evaluation=in_evaluation) == caveats


@pytest.mark.parametrize("kind", [LoopPosition, InStep, InEpoch])
def test_changed_weights_are_the_only_doubt(kind: type[LoopPosition]) -> None:
    """Weights that changed since the replay point are a reason for APPROXIMATE."""
    (caveat,) = kind(was_changed=True).caveats(9, in_evaluation=True)
    assert "changes weights" in caveat
