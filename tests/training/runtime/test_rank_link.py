"""What one of several ranks hears of the saves that the supervisor has announced."""

from pathlib import Path

import pytest

from orchestrator.errors import CheckpointWriteError
from orchestrator.rundir.paths import RunDir
from orchestrator.training.runtime.rank_link import RankLink, World


def rank_link(tmp_path: Path) -> RankLink:
    return RankLink(World(1, 2), RunDir(tmp_path), lambda kind, **facts: None, None)


@pytest.mark.parametrize("is_early", [False, True])
def test_refusal_of_another_rank_is_heard_before_and_after_the_place(
    tmp_path: Path, is_early: bool
) -> None:
    """Another rank may refuse a save before this one has come to its place: it does not wait."""
    ours = rank_link(tmp_path)
    refusal = {"type": "write_failed", "generation": 7, "problem": "no memory"}
    if is_early:
        assert not ours.on_message(refusal)
        written = ours.expect(7, 12)
    else:
        written = ours.expect(7, 12)
        assert ours.on_message(refusal)
    error = written.exception(timeout=0)
    assert isinstance(error, CheckpointWriteError)
    assert "no memory" in str(error.cause)


def test_refusal_counts_for_its_own_generation(tmp_path: Path) -> None:
    """What was refused earlier says nothing of a later save."""
    ours = rank_link(tmp_path)
    ours.on_message({"type": "write_failed", "generation": 7, "problem": "no memory"})
    assert not ours.expect(8, 12).done()
