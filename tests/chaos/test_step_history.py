"""The metrics of all attempts of a run, compared with those of an undisturbed run."""

import json
from collections.abc import Collection
from pathlib import Path

import pytest

from orchestrator.chaos.step_history import Divergence, History, Record


def step(at: float, number: int, loss: str = "0x1p0") -> Record:
    return Record(at, "step", number, 0, {"loss": f"{loss}{number}"})


UNDISTURBED = History([step(n, n) for n in (1, 2, 3, 4)])


def divergence(attempts: History, ignored: Collection[str] = ()) -> Divergence | None:
    return next(UNDISTURBED.divergences(attempts, ignored), None)


def test_reading(tmp_path: Path) -> None:
    """Lines of several processes come in the order of time; breakpoints are a set."""
    lines = [
        {"at": 2.0, "pid": 8, "kind": "step", "step": 2, "epoch": 0, "metrics": {"loss": "0x1"}},
        {"at": 1.0, "pid": 7, "breakpoint": "trainer:step"},
        {"at": 1.5, "pid": 7, "kind": "step", "step": 1, "epoch": 0, "metrics": {}},
    ]
    file = tmp_path / "history.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = History.read(file)
    assert [record.step for record in history.records] == [1, 2]
    assert history.reached == {"trainer:step"}
    assert history.steps == 2
    assert History.read(tmp_path / "none").steps == 0


def test_newest_process_of_each_rank_is_its_trainer(tmp_path: Path) -> None:
    """A rank's trainer is what was started last for it, or what tells of itself since then."""
    lines = [
        {"at": 1.0, "pid": 1, "rank": 0, "trainer": 10},
        {"at": 1.1, "pid": 1, "rank": 1, "trainer": 20},
        {"at": 1.2, "pid": 21, "rank": 1, "breakpoint": "trainer:load"},
        {"at": 1.3, "pid": 1, "breakpoint": "supervisor:sync"},
    ]
    file = tmp_path / "history.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = History.read(file)
    assert history.trainers == {0: 10, 1: 21}
    assert history.records == []


def test_repeated_steps_are_no_divergence() -> None:
    """Steps that are repeated with the same values are no divergence."""
    attempts = History([step(1, 1), step(2, 2), step(3, 2), step(4, 3), step(5, 4)])
    assert divergence(attempts) is None


def test_first_divergence_is_found() -> None:
    """The first differing value is found with its time, even if later values agree again."""
    attempts = History([step(1, 1), step(2, 2), step(3, 3, loss="0x2p0"), step(4, 3), step(5, 4)])
    found = divergence(attempts)
    assert found is not None
    assert (found.at, "loss of step 3" in found.text) == (3, True)
    assert divergence(attempts, {"loss"}) is None


@pytest.mark.parametrize("missing", [1, 4])
def test_skipped_step_is_found(missing: int) -> None:
    """A step that no attempt did is a divergence, even if it is the last one."""
    attempts = History([record for record in UNDISTURBED.records if record.step != missing])
    found = divergence(attempts)
    assert found is not None
    assert found.text == f"step {missing} was never done"


def test_step_beyond_the_end_is_found() -> None:
    """A run that trains longer than it should differs."""
    assert divergence(History([*UNDISTURBED.records, step(5, 5)])) is not None


def test_cost_of_a_fault() -> None:
    """Steps done again after it, and the seconds until training was as far as before."""
    attempts = History([step(1, 1), step(2, 2), step(3, 3), step(7, 2), step(8, 3), step(9, 4)])
    assert attempts.cost(at=3.5, until=20.0) == (2, 5.5)
    assert attempts.cost(at=3.5, until=7.5) == (1, 4.0)
    assert attempts.cost(at=9.5, until=11.0) == (0, 1.5)
    assert attempts.cost(at=1.5, until=20.0) == (0, 0.5)


def of_ranks(*losses: str) -> History:
    """Return two steps of as many ranks as there are losses, each rank with its own."""
    ranks = list(enumerate(losses))
    return History(
        [Record(n, "step", n, 0, {"loss": loss}, rank) for n in (1, 2) for rank, loss in ranks]
    )


def test_each_rank_is_compared_with_itself() -> None:
    """Ranks that have each other's values differ, and so does one that misses a step."""
    undisturbed = of_ranks("a", "b")
    assert not [*undisturbed.divergences(of_ranks("a", "b"), ())]
    exchanged = [found.text for found in undisturbed.divergences(of_ranks("b", "a"), ())]
    assert len(exchanged) == 4
    assert "loss of step 1, epoch 0, rank 1: differs" in exchanged[1]
    alone = [found.text for found in undisturbed.divergences(of_ranks("a"), ())]
    assert alone == ["step 1, rank 1 was never done"]


def test_cost_is_that_of_the_rank_that_lost_most() -> None:
    """A rank that ends its step as another dies does not make the fault look free."""
    times = [(1, 1, 0), (1, 1, 1), (2.1, 2, 0), (6, 2, 0), (6, 2, 1), (7, 3, 0), (7, 3, 1)]
    attempts = History([Record(at, "step", n, 0, {}, rank) for at, n, rank in times])
    assert attempts.cost(at=2.0, until=20.0) == (0, 4.0)


def log(at: float, number: int, loss: str) -> Record:
    return Record(at, "log", number, 0, {"loss": loss})


def begin(at: float, number: int) -> Record:
    return Record(at, "begin", number, 0, {})


@pytest.mark.parametrize(
    ("begun", "loss", "differs"),
    [(2, "2", False), (2, "9", True), (3, "9", False), (1, "9", True)],
)
def test_log_of_a_part_is_not_compared(begun: int, loss: str, differs: bool) -> None:
    """What an attempt has logged over fewer steps than the undisturbed run may differ."""
    steps = [step(n, n) for n in (1, 2, 3, 4)]
    undisturbed = History([begin(0, 0), *steps, log(2.5, 2, "1"), log(4.5, 4, "2")])
    resumed = [begin(5, begun), *(step(5 + n, n) for n in range(begun + 1, 5)), log(9.5, 4, loss)]
    found = list(undisturbed.divergences(History([begin(0, 0), *steps[:3], *resumed]), ()))
    assert [divergence.at for divergence in found] == ([9.5] if differs else [])


def test_beginning_is_no_step() -> None:
    """A beginning counts neither as a step nor as a value, and marks a framework's run."""
    framework = History([begin(0, 0), step(1, 1)])
    assert framework.is_of_framework
    assert not UNDISTURBED.is_of_framework
    assert framework.steps == 1
    assert framework.values().keys() == {(0, "step", 1, 0, "loss")}
