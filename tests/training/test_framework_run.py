"""A framework's run, with a framework of a few lines: it writes files of its own and loads them."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.paths import RunDir
from orchestrator.training import Session, TrainingRefused, TrainingStopped
from orchestrator.training.framework_run import FrameworkRun
from tests.support import full_disk
from tests.training.support import as_new_process


class Framework:
    """Counts to ``total``; saves every third step, and when it is asked to."""

    def __init__(self, root: Path, total: int = 9, name: str = "toy") -> None:
        as_new_process()
        self.name, self.root = name, root
        self.output = root / "output"
        self.total = total
        self.model = torch.nn.Linear(2, 1)
        self.began_at: int | None = None

    def train(self, at_step: dict[int, Callable[[], object]] | None = None) -> None:
        with FrameworkRun.open(self.name, "1.0", self.root / "run") as run:
            self.run = run
            step = int((run.resume_from / "step").read_text()) if run.resume_from else 0
            self.began_at = step
            run.begin(step, step // 3, total_steps=self.total, total_epochs=self.total // 3)
            while step < self.total:
                step += 1
                (at_step or {}).get(step, bool)()
                run.step(step, step // 3)
                run.record({"loss": 1.0 / step})
                if step % 3 == 0 or run.save_wanted:
                    self.save(step)
                if run.stop_wanted:
                    run.stop()

    @property
    def store(self) -> Store:
        return self.run._membership.backend.facts.store

    def save(self, step: int) -> None:
        directory = self.output / f"{step}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "step").write_text(str(step))
        self.run.publish(directory, self.model, final=step == self.total)


def published(root: Path) -> list[tuple[int, str]]:
    """Step and reason of every checkpoint that was ever published."""
    events, _ = Journal(RunDir(root / "run").journal_file).read()
    return [(e["step"], e["reason"]) for e in events if e["event"] == "checkpoint_published"]


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_framework_saves_are_published(tmp_path: Path) -> None:
    """Each of its saves becomes a checkpoint with its metrics; at its end the run is complete."""
    framework = Framework(tmp_path)
    framework.train()
    assert published(tmp_path) == [(3, "periodic"), (6, "periodic"), (9, "final")]
    assert RunDir(tmp_path / "run").done_file.exists()
    end = Journal(RunDir(tmp_path / "run").journal_file).read()[0][-1]
    assert (end["step"], end["total_steps"], end["epoch"], end["total_epochs"]) == (9, 9, 3, 3)
    (newest, *_) = sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)
    assert (newest / "content" / "step").read_text() == "9"
    assert '"loss": 0.111' in (newest / "manifest.json").read_text()


def test_stop_saves_the_step_and_the_next_attempt_continues_there(tmp_path: Path) -> None:
    """At the end of the step TrainingStopped is raised, with the status of a saved state."""
    framework = Framework(tmp_path)
    with pytest.raises(TrainingStopped) as stopped:
        framework.train({5: stop})
    assert stopped.value.code == 75
    assert published(tmp_path)[-1] == (5, "emergency")
    again = Framework(tmp_path)
    again.train()
    assert again.began_at == 5
    assert published(tmp_path)[2:] == [(6, "periodic"), (9, "final")]
    events, _ = Journal(RunDir(tmp_path / "run").journal_file).read()
    (resumed,) = [event for event in events if event["event"] == "resumed"]
    assert resumed["exactness"].startswith("APPROXIMATE: nothing has compared what toy restored")


def test_request_makes_the_framework_save_and_training_continues(tmp_path: Path) -> None:
    """SIGUSR2 has the framework save at the end of the step."""
    framework = Framework(tmp_path)
    framework.train({4: lambda: os.kill(os.getpid(), signal.SIGUSR2)})
    assert published(tmp_path)[1] == (4, "requested")
    assert published(tmp_path)[-1] == (9, "final")


def test_schedule_makes_the_framework_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--every holds beside the framework's own schedule."""
    monkeypatch.setenv("ORCHESTRATOR_EVERY", "4steps")
    Framework(tmp_path).train()
    assert [step for step, _ in published(tmp_path)] == [3, 4, 6, 8, 9]


def test_checkpoint_with_weights_that_are_not_finite_is_not_resumed_from(tmp_path: Path) -> None:
    """A stop with such weights ends with 74, and the next attempt takes the checkpoint before."""
    framework = Framework(tmp_path)

    def break_weights_and_stop() -> None:
        torch.nn.init.constant_(framework.model.weight, float("nan"))
        stop()

    with pytest.raises(TrainingStopped) as stopped:
        framework.train({5: break_weights_and_stop})
    assert stopped.value.code == 74
    again = Framework(tmp_path)
    again.train()
    assert again.began_at == 3


def test_full_disk_costs_a_checkpoint_and_not_the_training(tmp_path: Path) -> None:
    """A save that the disk refuses is reported; training continues, the last save is repeated."""
    framework = Framework(tmp_path)

    def fill() -> None:
        framework.store.disk.make_directory = lambda path, **_: full_disk()  # type: ignore[method-assign]

    def empty() -> None:
        del framework.store.disk.make_directory  # type: ignore[method-assign]

    framework.train({6: fill, 9: empty})
    assert [step for step, _ in published(tmp_path)] == [3, 9]


def test_framework_that_begins_at_another_step_is_refused(tmp_path: Path) -> None:
    """A run is not silently trained from zero when the framework has not loaded its checkpoint."""
    Framework(tmp_path).train()
    with (
        pytest.raises(TrainingRefused) as refused,
        FrameworkRun.open("toy", "1.0", tmp_path / "run") as run,
    ):
        run.begin(0, 0)
    assert refused.value.code == 78


def test_checkpoint_of_another_framework_is_refused(tmp_path: Path) -> None:
    """Neither a session nor another framework resumes from what a framework has saved."""
    Framework(tmp_path).train()
    with pytest.raises(TrainingRefused) as refused:
        Framework(tmp_path, name="another").train()
    assert refused.value.code == 78
    as_new_process()
    with (
        pytest.raises(TrainingRefused) as refused,
        Session(run_dir=tmp_path / "run", model=torch.nn.Linear(2, 1)),
    ):
        pass
    assert "it was saved by toy, and this script trains with a Session" in str(
        refused.value.__cause__
    )
    assert not list((tmp_path / "run").glob("checkpoints/quarantine/*"))


def test_finished_run_is_complete_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A repeated command trains nothing and says so; more steps continue the training."""
    Framework(tmp_path).train()
    before = published(tmp_path)
    Framework(tmp_path).train()
    assert published(tmp_path) == before
    assert "training is complete already (step 9)" in capsys.readouterr().err
    Framework(tmp_path, total=12).train()
    assert published(tmp_path)[-1] == (12, "final")
