"""A resumed run is bit for bit the run that was not interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.training import Session
from orchestrator.training.rng import restore
from tests.training.support import Training, assert_equal

LOADERS: list[dict[str, Any]] = [
    {},
    {"shuffle": False},
    {"drop_last": True, "batch_size": 5},
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True},
    {"sampler": torch.utils.data.WeightedRandomSampler([1.0] * 24, 24), "shuffle": False},
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loader", LOADERS, ids=range(len(LOADERS)))
def test_interrupted_run_equals_the_uninterrupted_one(
    tmp_path: Path, loader: dict[str, Any], accumulate: int
) -> None:
    """Stops in mid-epoch, at its edge, in the evaluation and at the last step change no bit."""
    whole = Training(accumulate=accumulate, **loader)
    assert whole.run(tmp_path / "whole")
    steps = len(whole.history)
    edge = steps // 3
    stops = [*(("step", at) for at in sorted({1, 2, edge})), ("evaluation", 2 * edge)]
    stops.append(("step", steps))
    lives = 0
    while True:
        here = Training(accumulate=accumulate, **loader)
        expected = stops[lives] if lives < len(stops) else None

        def stop(session: Session, place: str, at: Any = expected) -> bool:
            done = session.global_step + (place == "step")
            return at is not None and (place, done) == at

        if here.run(tmp_path / "cut", stop):
            break
        lives += 1
    assert lives == len(stops)
    assert_equal(here.result(), whole.result())


def test_skipped_samples_are_not_read(tmp_path: Path) -> None:
    """A run resumed in mid-epoch reads no sample that was consumed before."""
    first = Training(shuffle=False, epochs=1)
    first.run(tmp_path / "run", lambda session, place: session.global_step == 3)
    second = Training(shuffle=False, epochs=1)
    assert second.run(tmp_path / "run")
    dataset = second.loader.dataset
    assert dataset.read == list(range(16, 24))  # type: ignore[attr-defined]


def test_worker_count_does_not_change_the_data(tmp_path: Path) -> None:
    """Augmentation depends on the batch and not on who made it."""
    histories = []
    for workers in (0, 1, 2):
        training = Training(num_workers=workers)
        training.run(tmp_path / str(workers))
        histories.append(training.history)
    assert histories[0] == histories[1] == histories[2]


@pytest.mark.parametrize("stream", ["torch", "python", "data", "optimizer", "scheduler"])
def test_each_stream_matters(tmp_path: Path, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one of the restored streams the result differs: the comparison can fail."""
    whole = Training()
    whole.run(tmp_path / "whole")
    Training().run(tmp_path / "cut", lambda session, place: session.global_step == 7)
    second = Training()
    if stream in ("torch", "python"):
        monkeypatch.setattr(
            "orchestrator.training.rng.restore",
            lambda states: restore({k: v for k, v in states.items() if k != stream}),
        )
    elif stream == "data":
        monkeypatch.setattr(
            "orchestrator.training.data.DataPosition.load", lambda self, state: None
        )
    else:
        kind = type(getattr(second, stream))
        monkeypatch.setattr(kind, "load_state_dict", lambda self, state: None)
    second.run(tmp_path / "cut")
    with pytest.raises(AssertionError):
        assert_equal(second.result(), whole.result())
