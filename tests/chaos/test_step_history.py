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
    assert framework.values().keys() == {("step", 1, 0, "loss")}
