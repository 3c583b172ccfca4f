"""The loops of well-known programs, converted in few lines, are exact at each of their steps."""

import collections
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.training import Session, TrainingRefused, TrainingStopped
from tests.support import DEADLINE_SECONDS
from tests.training.support import as_new_process

STEPS = 9
StopAt = Callable[[], None]


class Script:
    """What the loops work with; ``stop`` is called where the run may be asked to stop."""

    def __init__(self, run_dir: Path, stop_after: int | None) -> None:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.loader = DataLoader(TensorDataset(torch.randn(10, 2)), 3, shuffle=True)
        self.session = Session(run_dir=run_dir, model=self.model, optimizer=self.optimizer)
        self._stop_after, self._steps = stop_after, 0

    def train(self, inputs: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.model(inputs).square().mean()
        loss.backward()
        return loss

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._steps += 1
        if self._steps == self._stop_after:
            signal.raise_signal(signal.SIGTERM)
        self.session.step(loss=loss)


def numbered_batches(script: Script) -> Any:
    """DCGAN: the number of the batch decides what is done, and where the epoch ends."""
    with script.session as session:
        seen = session.state.setdefault("seen", [])
        for epoch in session.epochs(3):
            for number, (inputs,) in session.enumerate(script.loader, 1):
                if number > 3:
                    break  # the last batch of the loader is left out
                loss = script.train(inputs * number)
                seen.append((epoch, number, loss.item()))
                script.step(loss)
    return seen


def endless_iterator(script: Script) -> Any:
    """A diffusion trainer: batches without end, several for each step."""
    with script.session as session:
        batches = session.cycle(script.loader)
        for _ in session.steps(STEPS):
            noise = torch.randn(())
            for _ in range(3):
                loss = script.train(next(batches)[0] + noise)
            script.step(loss)
    return script.model.state_dict()


def own_counter(script: Script) -> Any:
    """A ``while`` loop that keeps its shape."""
    with script.session as session:
        batches, step = session.cycle(script.loader), session.global_step
        while step < STEPS:
            loss = script.train(next(batches)[0] + torch.randn(()))
            script.step(loss)
            step += 1
    return script.model.state_dict()


def two_iterators(script: Script) -> Any:
    """Semi-supervised training: two loaders of other lengths."""
    other = DataLoader(TensorDataset(torch.randn(14, 2)), 2, shuffle=True)
    with script.session as session:
        labelled, unlabelled = session.cycle(script.loader), session.cycle(other)
        for _ in session.steps(STEPS):
            loss = script.train(torch.cat((next(labelled)[0], next(unlabelled)[0])))
            script.step(loss)
    return script.model.state_dict()


def fetched_ahead(script: Script) -> Any:
    """NanoGPT: a function draws the next batch while the model is at work on this one."""

    def fetch() -> torch.Tensor:
        return torch.randn(3, 2) + random.random()

    with script.session as session:
        inputs = session.state.get("inputs")
        inputs = fetch() if inputs is None else inputs
        for _ in session.steps(STEPS):
            loss = script.train(inputs)
            inputs = session.state["inputs"] = fetch()
            script.step(loss)
    return script.model.state_dict()


def loader_fetched_ahead(script: Script) -> Any:
    """A loop that takes a batch from a loader before it has used the one before."""
    with script.session as session:
        batches = session.cycle(script.loader)
        ahead = session.state.get("ahead") or next(batches)
        for _ in session.steps(STEPS):
            inputs, ahead = ahead, next(batches)
            session.state["ahead"] = ahead
            script.step(script.train(inputs[0]))
    return script.model.state_dict()


class Walk:
    """An environment without a state_dict, with a generator of its own."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(3)
        self.place = np.zeros(2, dtype=np.float32)

    def move(self, action: int) -> np.ndarray[Any, Any]:
        self.place += np.float32(action) + self.generator.normal(size=2).astype(np.float32)
        return self.place.copy()


def replay(script: Script) -> Any:
    """DQN: an environment, a deque of transitions, and an observation that is changed in place."""
    memory: collections.deque[Any] = collections.deque(maxlen=40)
    walk, observation = Walk(), np.zeros(2, dtype=np.float32)
    with script.session.keep(memory=memory, walk=walk, observation=observation) as session:
        for _ in session.steps(STEPS):
            for _ in range(10):
                action = random.randrange(2)
                following = walk.move(action)
                memory.append((observation.copy(), action, following))
                observation[:] = following
            sample = random.sample(memory, 4)
            script.step(script.train(torch.stack([torch.from_numpy(each[2]) for each in sample])))
    return [[part.tolist() for part in (each[0], each[2])] for each in memory]


LOOPS = [
    numbered_batches,
    endless_iterator,
    own_counter,
    two_iterators,
    fetched_ahead,
    loader_fetched_ahead,
    replay,
]


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_that_is_stopped_at_each_step_is_exact(
    loop: Callable[[Script], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is stopped after each of its steps ends like the one that is not."""
    whole = Script(tmp_path / "whole", None)
    result = str(loop(whole))
    attempts = 0
    while True:
        as_new_process()
        script = Script(tmp_path / "cut", stop_after=1)
        try:
            ended = str(loop(script))
            break
        except TrainingStopped:
            attempts += 1
    assert attempts == STEPS
    assert ended == result
    assert torch.equal(script.model[0].weight, whole.model[0].weight)
    assert script.session.exactness == "EXACT"
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_of_a_complete_run_does_nothing(
    loop: Callable[[Script], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed between its last step and its end makes no further step."""
    whole = Script(tmp_path, None)
    loop(whole)
    as_new_process()
    again = Script(tmp_path, None)
    monkeypatch.setattr(again, "step", lambda loss: pytest.fail("a step too many"))
    loop(again)
    assert torch.equal(again.model[0].weight, whole.model[0].weight)


def test_object_is_kept_before_the_block_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inside the block the state has been restored already."""
    script = Script(tmp_path, None)
    with pytest.raises(TrainingRefused), script.session as session:
        session.keep(memory=[])
    assert "cannot keep memory inside the `with` block" in capsys.readouterr().err


def test_object_that_is_not_kept_any_more_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that drops its replay buffer does not go on without it in silence."""
    script = Script(tmp_path, stop_after=1)
    with pytest.raises(TrainingStopped):
        replay(script)
    as_new_process()
    with pytest.raises(TrainingRefused):
        fetched_ahead(Script(tmp_path, None))
    assert "memory is in the file, but not registered" in capsys.readouterr().err


def test_cycle_over_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script gets a message and a status, and no traceback."""
    script = Script(tmp_path, None)
    with pytest.raises(TrainingRefused), script.session as session:
        next(session.cycle([]))
    assert "cannot cycle over this list" in capsys.readouterr().err


class Slow:
    """An object whose state takes its time, as that of a long deque does."""

    seconds = 0.02

    def state_dict(self) -> dict[str, int]:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing is in it."""


def test_time_to_collect_the_state_counts_towards_the_pace(tmp_path: Path) -> None:
    """Snapshots of a state that is slow to collect become rarer, as the budget of 1 % wants."""
    with Session(run_dir=tmp_path, slow=Slow()) as session:
        pace = session._open_run.saves.pace
        deadline = time.monotonic() + DEADLINE_SECONDS
        while pace.interval_seconds is None and time.monotonic() < deadline:
            session.step()
        assert pace.interval_seconds is not None
        assert pace.interval_seconds >= Slow.seconds / 0.01
