"""Mistakes in a loop are said at the first save or at the end, with the line to write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks

from orchestrator.exitcodes import ExitStatus
from orchestrator.training import Session, TrainingRefused
from tests.training.support import as_new_process

STEPS = 10


class Script:
    def __init__(self, run_dir: Path) -> None:
        self.model = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.objects: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        self.run_dir = run_dir

    def session(self) -> Session:
        return Session(run_dir=self.run_dir, **self.objects)

    def work(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()


def no_step(script: Script) -> None:
    with script.session():
        for _ in range(STEPS):
            script.work()


def range_of_epochs(script: Script) -> None:
    with script.session() as session:
        for _ in range(STEPS):
            for _ in session.batches([1, 2]):
                script.work()
                session.step()


def range_of_steps_with_a_noted_loss(script: Script) -> None:
    with script.session() as session:
        for _ in range(STEPS):
            script.work()
            session.state["loss"] = 0.5
            session.step()


def own_count_of_epochs(script: Script) -> None:
    with script.session() as session:
        for epoch in range(session.state.get("epoch", 0), STEPS):
            for _ in session.batches([1, 2]):
                script.work()
                session.step()
            session.state["epoch"] = epoch + 1


def two_steps_a_batch(script: Script) -> None:
    with script.session() as session:
        for _ in session.epochs(STEPS):
            for _ in session.batches([1, 2]):
                script.work()
                session.step()
                session.step()


def two_steps_a_round(script: Script) -> None:
    with script.session() as session:
        for _ in session.steps(2 * STEPS):
            script.work()
            session.step()
            session.step()


def unregistered_optimizer(script: Script) -> None:
    del script.objects["optimizer"]
    right(script)


def second_optimizer_unregistered(script: Script) -> None:
    other = torch.nn.Linear(1, 1)
    second = torch.optim.Adam(other.parameters())
    script.objects["other"] = other
    with script.session() as session:
        for _ in session.steps(STEPS):
            script.work()
            second.step()
            session.step()


def model_made_again(script: Script) -> None:
    script.objects["model"] = torch.nn.Linear(2, 1)
    right(script)


def right(script: Script) -> None:
    with script.session() as session:
        for _ in session.steps(STEPS):
            script.work()
            session.step()


def right_with_a_wrapper(script: Script) -> None:
    class Wrapper:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def state_dict(self) -> Any:
            return self.inner.state_dict()

        def load_state_dict(self, state: Any) -> None:
            self.inner.load_state_dict(state)

    script.objects["optimizer"] = Wrapper(script.optimizer)
    right(script)


def right_with_the_step_of_the_session(script: Script) -> None:
    with script.session() as session:
        while session.global_step < STEPS:
            script.work()
            session.step()


def right_with_a_count_of_its_own(script: Script) -> None:
    with script.session() as session:
        for _ in range(session.state.get("rounds", 0), STEPS):
            script.work()
            session.state["rounds"] = session.state.get("rounds", 0) + 1
            session.step()


def right_with_an_evaluation(script: Script) -> None:
    with script.session() as session:
        for _ in session.batches(range(STEPS)):
            script.work()
            session.step()
        for _ in session.batches(range(STEPS)):
            session.poll()


def right_with_epochs_of_two_passes(script: Script) -> None:
    with script.session() as session:
        for _ in session.epochs(2):
            for _ in range(2):
                for _ in session.batches([1, 2]):
                    script.work()
                    session.step()


def right_with_accumulation(script: Script) -> None:
    with script.session() as session:
        for _ in session.steps(STEPS):
            for _ in range(2):
                script.model(torch.ones(1, 2)).sum().backward()
            script.optimizer.step()
            script.optimizer.zero_grad()
            session.step()


def right_with_few_steps_of_the_optimizer(script: Script) -> None:
    with script.session() as session:
        for step in session.steps(3 * STEPS):
            if step % 3 == 0:
                script.work()
            session.step()


@pytest.mark.parametrize(
    ("loop", "line"),
    [
        (no_step, "write session.step(loss=loss) after each optimizer.step()"),
        (range_of_epochs, "a resumed run must begin at the first one again"),
        (own_count_of_epochs, "write `for epoch in session.epochs(N)`"),
        (range_of_steps_with_a_noted_loss, "or `for step in session.steps(N)`"),
        (two_steps_a_batch, "call it once after each optimizer.step()"),
        (two_steps_a_round, "for 10 rounds of session.steps(): call it once in each"),
        (unregistered_optimizer, "write Session(..., optimizer=optimizer)"),
        (second_optimizer_unregistered, "write Session(..., other_optimizer=optimizer)"),
        (model_made_again, "works on no registered model"),
    ],
)
def test_mistake_is_said_once_with_the_line_to_write(
    loop: Callable[[Script], None], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loop that would not survive a resume is told so while nothing is lost."""
    loop(Script(tmp_path))
    said = capsys.readouterr().err
    assert said.count(line) == 1
    assert said.count("warning: ") == 1


@pytest.mark.parametrize(
    "loop",
    [
        right,
        right_with_a_wrapper,
        right_with_the_step_of_the_session,
        right_with_a_count_of_its_own,
        right_with_an_evaluation,
        right_with_epochs_of_two_passes,
        right_with_accumulation,
        right_with_few_steps_of_the_optimizer,
    ],
)
def test_loop_without_a_mistake_hears_nothing(
    loop: Callable[[Script], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The session is silent about a loop that is right."""
    loop(Script(tmp_path))
    assert capsys.readouterr().err == ""


ROUNDS = 4


class CutError(Exception):
    """Ends a script in the middle."""


def train_rounds(script: Script, first_round: Callable[[Session], int], cut: int | None) -> None:
    with script.session() as session:
        for number in range(first_round(session), ROUNDS):
            for _ in session.batches([1, 2]):
                script.work()
                session.step()
                if session.global_step == cut:
                    session.checkpoint()
                    raise CutError
            session.state["round"] = number + 1


@pytest.mark.parametrize(
    "first_round",
    [lambda session: session.state.get("round", 0), lambda session: session.global_step // 2],
    ids=["own_count", "global_step"],
)
def test_resumed_loop_that_begins_at_a_later_round_does_not_complete_the_run(
    first_round: Callable[[Session], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A script that finds none of its data left has trained nothing, and is told so."""
    with pytest.raises(CutError):
        train_rounds(Script(tmp_path), first_round, 7)
    as_new_process()
    with pytest.raises(TrainingRefused) as refused:
        train_rounds(Script(tmp_path), first_round, None)
    assert refused.value.status == ExitStatus.CONFIGURATION
    assert "let its loop begin at the first round again" in capsys.readouterr().err
    assert not (tmp_path / "done.json").exists()


def test_resumed_loop_over_all_rounds_does_only_what_is_left(tmp_path: Path) -> None:
    """Passes that are done already yield nothing, so that range(N) resumes at the right batch."""
    with pytest.raises(CutError):
        train_rounds(Script(tmp_path), lambda _: 0, 5)
    as_new_process()
    train_rounds(Script(tmp_path), lambda _: 0, None)
    assert json.loads((tmp_path / "done.json").read_text())["step"] == 2 * ROUNDS


def fails(script: Script) -> None:
    with pytest.raises(ValueError, match="the script's own"), script.session() as session:
        script.work()
        session.step()
        raise ValueError("the script's own")


def is_refused(script: Script) -> None:
    right(script)
    as_new_process()
    script.objects["another"] = torch.nn.Linear(1, 1)
    with pytest.raises(TrainingRefused), script.session():
        pass


@pytest.mark.parametrize("loop", [right, fails, is_refused])
def test_steps_of_optimizers_are_not_counted_after_the_block(
    loop: Callable[[Script], None], tmp_path: Path
) -> None:
    """No hook on optimizers is left, however the block ends."""
    before = list(_global_optimizer_post_hooks)
    loop(Script(tmp_path))
    assert list(_global_optimizer_post_hooks) == before
