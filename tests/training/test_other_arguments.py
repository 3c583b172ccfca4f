"""A run that is started again with other arguments says so, and uses what it says."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.training import Session, TrainingRefused, TrainingStopped
from tests.e2e.warm_python import TRAINING, WarmPython

SCRIPT = """
import os, signal, sys, torch
from orchestrator.training import Session
steps, lr, stop = int(sys.argv[1]), float(sys.argv[3]), int(os.environ.get("STOP", 0))
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=lr)
with Session(model=model, optimizer=optimizer) as session:
    for step in session.steps(steps):
        model(torch.ones(1, 2)).sum().backward(); optimizer.step()
        if step + 1 == stop:
            signal.raise_signal(signal.SIGTERM)
        session.step()
print("trained to", session.global_step, "at", optimizer.param_groups[0]["lr"])
"""

Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Runs the script in a process of its own; the words are its arguments."""
    (tmp_path / "train.py").write_text(SCRIPT)

    def run(words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        arguments = ["train.py", *words.split()]
        process = WarmPython(arguments, TRAINING, cwd=tmp_path, env=os.environ | variables)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.wait(), out, err)

    return run


@pytest.mark.processes
def test_resume_with_other_arguments_is_told_with_both_values(train: Train, tmp_path: Path) -> None:
    """Arguments and optimizer options stand side by side; the same arguments give no warning."""
    assert train("6 --lr 1e-3", STOP="2").returncode == 75
    same = train("6 --lr 1e-3", STOP="4")
    assert same.returncode == 75
    assert "WARNING" not in same.stderr
    other = train("6 --lr 1e-5")
    assert other.returncode == 0, other.stderr
    assert "arguments then: 6 --lr 1e-3\n    arguments now:  6 --lr 1e-5" in other.stderr
    assert "optimizer: lr stays 0.001 as saved; this start's 1e-05 is not used" in other.stderr
    assert "--run-dir 'runs/{name}-{args}'" in other.stderr
    assert "trained to 6 at 0.001" in other.stdout
    manifests = [
        json.loads(path.read_bytes())
        for path in sorted((tmp_path / "runs/train/checkpoints").glob("step-*/manifest.json"))
    ]
    assert manifests[-1]["start"]["arguments"] == ["6", "--lr", "1e-5"]
    assert manifests[-1]["options"]["optimizer"]["lr"] == 1e-3


@pytest.mark.processes
def test_complete_run_is_not_trained_with_other_arguments_unasked(train: Train) -> None:
    """A sweep over one directory ends with 78 at its second value, and trains it when asked to."""
    assert train("2 --lr 1e-3").returncode == 0
    refused = train("3 --lr 1e-4")
    assert refused.returncode == 78
    assert "arguments then: 2 --lr 1e-3\n  arguments now:  3 --lr 1e-4" in refused.stderr
    assert "--continue" in refused.stderr
    assert train("2 --lr 1e-3").returncode == 0
    assert "trained to 3" in train("3 --lr 1e-4", ORCHESTRATOR_CONTINUE="on").stdout
    assert train("3 --lr 1e-4").returncode == 0


@pytest.mark.processes
def test_pattern_gives_each_set_of_arguments_a_run(train: Train, tmp_path: Path) -> None:
    """Each value of a sweep is trained in a directory that is named after it."""
    for lr in ("1e-3", "1e-4"):
        result = train(f"2 --lr {lr}", ORCHESTRATOR_RUN_DIR="runs/{name}-{args}")
        assert f"trained to 2 at {float(lr)}" in result.stdout
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"train-2,lr=1e-3", "train-2,lr=1e-4"}


# --- options of optimizers -----------------------------------------------------------------------


class Life:
    """One life of a training in ``root`` that stops after a step, or is complete after six."""

    def __init__(
        self,
        root: Path,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        schedule: str | None,
        keep_options: tuple[str, ...] = (),
    ) -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        self.optimizer = optimizer(model.parameters())
        objects: dict[str, Any] = {"model": model, "optimizer": self.optimizer}
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        if schedule == "step":
            self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)
            objects["scheduler"] = self.scheduler
        self.by_hand = schedule == "by hand"
        self.session = Session(run_dir=root, keep_options=keep_options, **objects)

        self.rates: list[float] = []

    def train(self, stop: int) -> None:
        """Train to a step, and note the learning rate of each."""
        with self.session as session:
            for step in session.steps(6):
                if self.by_hand:
                    self.optimizer.param_groups[0]["lr"] *= 0.5
                self.rates.append(self.optimizer.param_groups[0]["lr"])
                self.optimizer.step()
                if self.scheduler is not None:
                    self.scheduler.step()
                if step + 1 == stop:
                    signal.raise_signal(signal.SIGTERM)
                session.step()


def sgd(**options: Any) -> Callable[[Iterable[Any]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, **options)


def adam(**options: Any) -> Callable[[Iterable[Any]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, **options)


@pytest.mark.parametrize("schedule", [None, "step", "by hand"])
def test_schedule_is_not_taken_for_another_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schedule: str | None
) -> None:
    """A learning rate that a schedule has changed is no option that the start has set."""
    for stop in (2, 4):
        life = Life(tmp_path / "run", sgd(lr=0.5), schedule)
        with pytest.raises(TrainingStopped):
            life.train(stop)
    assert "WARNING" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (sgd(lr=0.5), sgd(lr=0.25), "optimizer: lr stays 0.5 as saved; this start's 0.25"),
        (
            adam(lr=0.5, weight_decay=0.1),
            adam(lr=0.5, weight_decay=0.2),
            "optimizer: weight_decay stays 0.1 as saved; this start's 0.2",
        ),
        (
            adam(lr=0.5, betas=(0.9, 0.99)),
            adam(lr=0.5, betas=(0.8, 0.99)),
            "optimizer: betas stays [0.9, 0.99] as saved; this start's [0.8, 0.99]",
        ),
    ],
    ids=["lr", "weight_decay", "betas"],
)
def test_replaced_option_is_named_at_each_resume(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first: Callable[[Iterable[Any]], torch.optim.Optimizer],
    second: Callable[[Iterable[Any]], torch.optim.Optimizer],
    told: str,
) -> None:
    """An option that the restored optimizer brings back is named until the script sets it too."""
    with pytest.raises(TrainingStopped):
        Life(tmp_path / "run", first, "step").train(2)
    for stop in (4, 5):
        with pytest.raises(TrainingStopped):
            Life(tmp_path / "run", second, "step").train(stop)
        assert told in capsys.readouterr().err
    Life(tmp_path / "run", first, "step").train(0)
    assert "stays" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("schedule", "rates"), [(None, [4.0] * 4), ("step", [1.0, 0.5, 0.25, 0.125])]
)
def test_kept_learning_rate_goes_on_where_its_schedule_is(
    tmp_path: Path, schedule: str | None, rates: list[float]
) -> None:
    """keep_options takes the script's value, for the rest of the run, and is APPROXIMATE."""
    with pytest.raises(TrainingStopped):
        Life(tmp_path / "run", sgd(lr=2.0), schedule).train(2)
    seen: list[float] = []
    for stop in (4, 0):
        life = Life(tmp_path / "run", sgd(lr=4.0), schedule, ("lr",))
        with contextlib.suppress(TrainingStopped):
            life.train(stop)
        seen += life.rates
        assert "lr of optimizer is 4.0, as this start sets it, and was 2.0" in str(
            life.session.exactness
        )
    assert seen == rates


def test_unknown_option_to_keep_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt name is refused with the names that there are."""
    with pytest.raises(TrainingRefused):
        Life(tmp_path / "run", sgd(lr=2.0), None, ("learning_rate",)).train(1)
    assert "the options are dampening, differentiable" in capsys.readouterr().err
