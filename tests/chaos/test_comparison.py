"""What two undisturbed runs may differ in, and which faults are blamed for a difference."""

from pathlib import Path

import pytest

from orchestrator.chaos.comparison import Reference
from orchestrator.chaos.experiment import blame_each
from orchestrator.chaos.result import Injection, TrialResult
from orchestrator.chaos.step_history import Divergence, History, Record
from orchestrator.errors import ConfigError


def result_of(content: dict[str, str]) -> TrialResult:
    return TrialResult(Path("trial"), History(), content, [], [], 10.0, 9.0, 1.0)


@pytest.mark.parametrize(
    "path",
    [
        *("rng.numpy.keys.3", "rng.python.1"),
        *("data.epoch_rng.numpy.keys.3", "data.epoch_rng.python.1"),
        "env_state_dict.__kept__.attributes.began_at",
        "rng_state.pth.numpy.1",
        *("rank-00001.pt.rng.numpy.keys.3", "rank-00001.pt.digests.env_state_dict"),
    ],
)
def test_what_a_script_does_not_seed_may_differ(path: str) -> None:
    """An unused stream differs from run to run, and the time of day in a kept environment."""
    first, second = ({path: value, "model_state_dict.w": "1"} for value in "ab")
    reference = Reference.of(result_of(first), result_of(second))
    assert reference.divergences(result_of({path: "c", "model_state_dict.w": "1"})) == []
    assert reference.divergences(result_of({path: "c", "model_state_dict.w": "2"}))


@pytest.mark.parametrize(
    "path",
    [
        *("model_state_dict.w", "model_state_dict.kept.w", "data.passes.0.batches", "data.seed"),
        *("rank-00001.pt.data.seed", "rank-00001.pt.buffers.model_state_dict.mean"),
    ],
)
def test_weights_and_position_must_not_differ(path: str) -> None:
    """A script whose weights or data differ without a fault cannot be judged."""
    with pytest.raises(ConfigError, match=path):
        Reference.of(result_of({path: "a"}), result_of({path: "b"}))


def test_stream_of_a_rank_is_named_with_its_file() -> None:
    """What is not compared is named once for all entries of a stream, with whose it is."""
    paths = ("rng.numpy.keys.3", "rank-00001.pt.rng.numpy.keys.3", "rank-00001.pt.rng.numpy.gauss")
    first, second = (dict.fromkeys(paths, value) for value in "ab")
    reference = Reference.of(result_of(first), result_of(second))
    assert reference.volatile == ["rank-00001.pt.rng.numpy", "rng.numpy"]


def test_each_attempt_that_differs_is_blamed_on_its_fault() -> None:
    """Two faults after which the run differs are both inexact, and the one between is exact."""
    injections = [Injection(name, at) for name, at in (("a", 1.0), ("b", 3.0), ("c", 5.0))]
    blame_each(injections, [Divergence(at, f"loss at {at}") for at in (1.5, 1.6, 5.5)])
    assert [injection.exact for injection in injections] == [False, True, False]
    assert [injection.problem for injection in injections] == [
        "loss at 1.5",
        None,
        "loss at 5.5, as it did already before this fault",
    ]


def test_difference_before_the_first_fault_is_the_runs_own() -> None:
    """It counts for no fault, and a later one counts for the fault before it."""
    injections = [Injection("a", 3.0)]
    blame_each(injections, [Divergence(1.0, "early"), Divergence(2.0, "again"), Divergence(4, "x")])
    assert [(i.name, i.exact) for i in injections] == [("a", False), ("no fault at all", False)]


def test_every_differing_value_is_found() -> None:
    """All differences are found in the order of time, not only the first."""
    whole = History([Record(n, "step", n, 0, {"loss": "1"}) for n in (1, 2, 3)])
    cut = History([Record(n, "step", n, 0, {"loss": str(n)}) for n in (1, 2, 3)])
    assert [found.at for found in whole.divergences(cut, ())] == [2, 3]
