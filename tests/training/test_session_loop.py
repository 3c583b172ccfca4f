"""The session around a training loop: stopping, saving, and what it refuses."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.publication import publish_state
from orchestrator.checkpoint.store import Store
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.paths import RunDir
from orchestrator.system.stop_signals import MERGE_SECONDS
from orchestrator.training import Session, TrainingRefused, TrainingStopped
from tests.support import wait_until
from tests.training.support import Training, as_new_process, assert_equal

DEADLINE_SECONDS = 20.0


def checkpoints(root: Path) -> list[Checkpoint]:
    return Store.open(RunDir(root), []).all()


def saved(root: Path) -> list[tuple[int, str]]:
    return [(c.manifest.step, c.manifest.reason.value) for c in checkpoints(root)]


def content_of(checkpoint: Checkpoint) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint.state_file)
    return content


def events(root: Path) -> list[dict[str, Any]]:
    return Journal(root / "journal.jsonl").read()[0]


def a_session(root: Path, **objects: Any) -> Session:
    return Session(run_dir=root, **({"model": torch.nn.Linear(2, 1)} | objects))


def stopped_at(root: Path, step: int) -> None:
    """A run of one layer that was asked to stop after ``step`` steps."""
    with pytest.raises(TrainingStopped), a_session(root) as session:
        for number in session.steps(step + 1):
            if number + 1 == step:
                signal.raise_signal(signal.SIGTERM)
            session.step(loss=1.0)


# --- stopping --------------------------------------------------------------------------------


def test_stop_at_every_single_step(tmp_path: Path) -> None:
    """A run that is interrupted at each of its steps is the same as the uninterrupted one."""
    whole = Training()
    assert whole.run(tmp_path / "whole")
    attempts = 0
    while True:
        here = Training()
        if attempts:
            torch.manual_seed(999)  # a script may seed itself differently, or not at all
        began = attempts

        def stop(session: Session, place: str, began: int = began) -> bool:
            return place == "step" and session.global_step == began

        if here.run(tmp_path / "cut", stop):
            break
        attempts += 1
    assert attempts == len(whole.history)
    assert_equal(here.result(), whole.result())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_each_stop_signal_saves_at_the_next_safe_point(tmp_path: Path, name: str) -> None:
    """The loop runs on to the end of the step, the state is saved, the status says so."""
    number = signal.Signals[name]
    with pytest.raises(TrainingStopped) as stopped, a_session(tmp_path) as session:
        for step in session.steps(9):
            if step == 4:
                signal.raise_signal(number)
                assert session.global_step == 4
            session.step()
    assert stopped.value.status == stopped.value.code == 75
    assert saved(tmp_path) == [(1, "periodic"), (5, "emergency")]
    assert not (tmp_path / "done.json").exists()
    recorded = {event["event"]: event for event in events(tmp_path)}
    assert recorded["stop_noticed"]["source"] == name
    assert recorded["run_stopped"]["status"] == 75


@pytest.mark.parametrize("loss", [float("inf"), float("nan")])
def test_stop_at_a_step_whose_loss_is_not_finite_loses_nothing(tmp_path: Path, loss: float) -> None:
    """Mixed precision skips such a step and leaves the weights alone: the run resumes from it."""
    with pytest.raises(TrainingStopped) as stopped, a_session(tmp_path) as session:
        for step in session.steps(9):
            if step == 4:
                signal.raise_signal(signal.SIGTERM)
            session.step(loss=loss if step == 4 else 0.5)
    assert stopped.value.status == 75
    with a_session(tmp_path) as again:
        assert again.global_step == 5


def test_stop_with_weights_that_are_not_finite_says_unsaved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that no run resumes from is not a save: the status is 74, with the reason."""
    model = torch.nn.Linear(2, 1)
    with pytest.raises(TrainingStopped) as stopped, a_session(tmp_path, model=model) as session:
        for step in session.steps(9):
            if step == 4:
                torch.nn.init.constant_(model.weight, float("nan"))
                signal.raise_signal(signal.SIGTERM)
            session.step(loss=0.5)
    assert stopped.value.status == 74
    assert "weights that are not finite" in capsys.readouterr().err
    with a_session(tmp_path) as again:
        assert again.global_step == 1


def test_second_stop_signal_gets_the_scripts_own_handler(tmp_path: Path) -> None:
    """Once a stop was asked for, the same signal again does what it does in any script."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(TrainingStopped), a_session(tmp_path) as session:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert heard == []
            time.sleep(2 * MERGE_SECONDS)
            signal.raise_signal(signal.SIGTERM)
            assert heard == [signal.SIGTERM]
            session.step()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigusr2_saves_and_training_goes_on(tmp_path: Path) -> None:
    """A request to save is served at the next safe point, once."""
    with a_session(tmp_path) as session:
        for step in session.steps(6):
            if step == 3:
                signal.raise_signal(signal.SIGUSR2)
            session.step()
    assert saved(tmp_path) == [(1, "periodic"), (4, "requested"), (6, "final")]


def test_poll_between_batch_and_step_saves_nothing(tmp_path: Path) -> None:
    """A due save waits for the step, since the state belongs to neither side of it."""
    loader = DataLoader(TensorDataset(torch.arange(4.0)), 1)
    with a_session(tmp_path) as session:
        for _ in session.epochs(1):
            for _ in session.batches(loader):
                if session.global_step == 2:
                    signal.raise_signal(signal.SIGUSR2)
                session.poll()
                assert "requested" not in [reason for _, reason in saved(tmp_path)]
                session.step()
                if session.global_step == 3:
                    break
    assert (3, "requested") in saved(tmp_path)


def test_evaluation_after_a_broken_off_epoch_can_be_stopped(tmp_path: Path) -> None:
    """A loop that leaves its batches by `break` does not make poll() deaf for a stop."""
    loader = DataLoader(TensorDataset(torch.arange(8.0)), 1)
    polls = 0
    with pytest.raises(TrainingStopped), a_session(tmp_path) as session:
        for _ in session.epochs(1):
            for number, _ in enumerate(session.batches(loader)):
                if number == 3:
                    break
                session.step()
            signal.raise_signal(signal.SIGTERM)
            for _ in range(10):
                polls += 1
                session.poll()
    assert polls == 1


def test_stopped_loop_over_steps_continues_at_the_next_step(tmp_path: Path) -> None:
    """session.steps() goes on with the step after the last one that was saved."""
    stopped_at(tmp_path, 3)
    with a_session(tmp_path) as session:
        seen = []
        for step in session.steps(6):
            seen.append(step)
            session.step()
    assert seen == [3, 4, 5]


def test_round_without_a_step_is_an_error(tmp_path: Path) -> None:
    """session.steps() would never end when session.step() is forgotten."""
    with (
        pytest.raises(RuntimeError, match=r"one session\.step\(\)"),
        a_session(tmp_path) as session,
    ):
        for _ in session.steps(2):
            pass


def test_code_after_the_loop_does_not_run_on_a_stop(tmp_path: Path) -> None:
    """A script that catches Exception still ends with the status of the stop."""
    reached = []
    with pytest.raises(SystemExit) as stopped, a_session(tmp_path) as session:
        try:
            signal.raise_signal(signal.SIGTERM)
            session.step()
        except Exception:
            reached.append("except Exception")
        reached.append("after the loop")
    assert stopped.value.code == 75
    assert reached == []


# --- saving ----------------------------------------------------------------------------------


def test_checkpoints_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that has passed makes the next safe point save."""
    monkeypatch.setenv("ORCHESTRATOR_EVERY", "1ms")
    # The pause between two writes grows with what they cost, which is much on a busy machine.
    monkeypatch.setenv("ORCHESTRATOR_SNAPSHOT_BUDGET", "50%")
    deadline = time.monotonic() + DEADLINE_SECONDS
    with a_session(tmp_path) as session:
        while len(saved(tmp_path)) < 3:
            session.step()
            time.sleep(0.01)  # or the thread that writes hardly gets its turn
            assert time.monotonic() < deadline
    assert {reason for _, reason in saved(tmp_path)} == {"periodic", "final"}


def test_page_says_what_the_loop_is_busy_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains until the batches are used up or a poll, then evaluates to the next step."""
    monkeypatch.setenv("ORCHESTRATOR_SNAPSHOT_BUDGET", "off")
    phases: list[str] = []

    class Watched:
        def state_dict(self) -> dict[str, Any]:
            note()
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def note() -> None:
        phases.append(session._open_run.membership.backend.facts.memory.page.phase.name.lower())

    with Session(run_dir=tmp_path, watched=Watched()) as session:
        for _ in session.epochs(2):
            for _ in session.batches([1]):
                session.step()
                phases.clear()
                session.checkpoint()
                note()
                session.poll()
                note()
                session.step()
                note()
                assert phases == ["save", "train", "evaluate", "train"]
            phases.clear()
            note()
            session.checkpoint()
            note()
            assert phases == ["evaluate", "evaluate"]


def test_checkpoint_method_saves_at_once(tmp_path: Path) -> None:
    """session.checkpoint() saves now and returns where."""
    with a_session(tmp_path) as session:
        for _ in session.steps(3):
            session.step(loss=0.25)
        path = session.checkpoint()
        assert path is not None
        assert path.parent == tmp_path / "checkpoints"
    assert (3, "requested") in saved(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["metrics"] == {"loss": 0.25}
    assert manifest["healthy"] is True


def test_session_state_is_restored(tmp_path: Path) -> None:
    """Nested values, converted ones included, are there again after a resume."""
    state = {"best": 0.5, "path": Path("x"), "curve": [(1, torch.ones(2))], "seen": {1, 2}}
    with pytest.raises(TrainingStopped), a_session(tmp_path) as session:
        session.state.update(state)
        signal.raise_signal(signal.SIGTERM)
        session.step()
    with a_session(tmp_path) as again:
        assert str(again.state) == str(state)
        assert again.resumed_from == tmp_path / "checkpoints" / "step-000000000001-2" or (
            again.resumed_from == tmp_path / "checkpoints" / "step-000000000001"
        )
        assert again.exactness == "EXACT"


def test_best_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With keep_best, the best one by a metric of the evaluation outlives newer ones."""
    monkeypatch.setenv("ORCHESTRATOR_KEEP", "2")
    monkeypatch.setenv("ORCHESTRATOR_KEEP_BEST", "accuracy:max")
    monkeypatch.setenv("ORCHESTRATOR_EVERY", "1epoch")
    loader = DataLoader(TensorDataset(torch.arange(4.0)), 2)
    with a_session(tmp_path) as session:
        for epoch in session.epochs(6):
            for _ in session.batches(loader):
                session.step()
            session.poll(accuracy=0.9 if epoch == 1 else 0.1)
    kept = {c.manifest.step: c.manifest.metrics["accuracy"] for c in checkpoints(tmp_path)}
    assert kept[4] == 0.9
    assert sorted(kept) == [4, 12]


@pytest.mark.parametrize("resumed", [False, True])
def test_metric_belongs_to_the_step_that_measured_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    """A later checkpoint, of other weights, keeps the latest value but does not claim it."""
    monkeypatch.setenv("ORCHESTRATOR_KEEP", "9")
    for last in (2, 4) if resumed else (4,):
        with contextlib.suppress(TrainingStopped), a_session(tmp_path) as session:
            for step in session.steps(4):
                session.step(loss=float(step))
                if step + 1 == 2:
                    session.poll(accuracy=0.9)
                if step + 1 == last == 2:
                    signal.raise_signal(signal.SIGTERM)
                    session.poll()
                session.checkpoint()
    kept = {c.manifest.step: c for c in checkpoints(tmp_path)}
    assert kept[1].manifest.metrics == {"loss": 0.0}
    assert kept[2].manifest.metrics == {"loss": 1.0, "accuracy": 0.9}
    for step in (3, 4):
        assert kept[step].manifest.metrics == {"loss": step - 1.0}
        assert content_of(kept[step])["accuracy"] == 0.9


def test_classic_resume_code_reads_a_state_file(tmp_path: Path) -> None:
    """The tutorial's resume code continues with the right epoch and the exact weights."""
    training = Training(epochs=2)
    training.run(tmp_path, lambda session, place: session.global_step == 9)
    other = Training()
    checkpoint = torch.load(checkpoints(tmp_path)[-1].state_file)
    other.model.load_state_dict(checkpoint["model_state_dict"])
    other.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    start_epoch, step = checkpoint["epoch"], checkpoint["step"]
    assert (start_epoch, step) == (1, 10)
    assert str(other.model.state_dict()) == str(training.model.state_dict())
    assert isinstance(checkpoint["loss"], float)


# --- what is registered ----------------------------------------------------------------------


def test_objects_registered_before_the_block_are_restored(tmp_path: Path) -> None:
    """An object that register() adds is saved and restored like the keywords."""
    session = a_session(tmp_path)
    session.register(head=torch.nn.Linear(2, 3))
    with session:
        session.step()
    assert "head_state_dict" in content_of(checkpoints(tmp_path)[-1])


def test_register_inside_the_block_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inside it is too late, since everything has been restored."""
    with pytest.raises(TrainingRefused) as refused, a_session(tmp_path) as session:
        session.register(head=torch.nn.Linear(2, 3))
    assert refused.value.status == 78
    assert "cannot register head inside the `with` block" in capsys.readouterr().err


def test_object_without_a_state_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain value as a keyword ends with 78 and the advice where it belongs."""
    with pytest.raises(TrainingRefused) as refused:
        a_session(tmp_path, epochs=10)
    assert refused.value.status == 78
    assert "cannot register epochs: a int has no state_dict()" in capsys.readouterr().err


# --- starting from a file of others ----------------------------------------------------------


def classic_file(path: Path, **more: Any) -> torch.nn.Linear:
    model = torch.nn.Linear(2, 1)
    content = {"epoch": 3, "model_state_dict": model.state_dict(), "loss": 0.5}
    torch.save(content | more, path)
    return model


def test_checkpoint_of_the_run_outranks_start_from(tmp_path: Path) -> None:
    """A run that has checkpoints continues from them, and the start file may be gone."""
    old = classic_file(tmp_path / "old.pth")
    with (
        pytest.raises(TrainingStopped),
        a_session(tmp_path / "run", start_from=tmp_path / "old.pth") as session,
    ):
        assert session.epoch == 3
        signal.raise_signal(signal.SIGTERM)
        session.step()
    (tmp_path / "old.pth").unlink()
    model = torch.nn.Linear(2, 1)
    again = a_session(tmp_path / "run", model=model, start_from=tmp_path / "old.pth")
    with again:
        assert (again.epoch, again.global_step) == (3, 1)
        assert torch.equal(model.weight, old.weight)


def test_start_from_says_what_it_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An object that the start file does not know keeps its state, and that is said."""
    classic_file(tmp_path / "old.pth")
    head = torch.nn.Linear(2, 3)
    before = head.weight.clone()
    with a_session(tmp_path / "run", head=head, start_from=tmp_path / "old.pth"):
        assert torch.equal(head.weight, before)
    assert "has no state of head: left as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "status", "text"),
    [
        (lambda path: None, 78, "there is no such file"),
        (lambda path: torch.save({"weights": 1}, path), 78, "its keys are weights"),
        (
            lambda path: torch.save(torch.nn.Linear(2, 1).state_dict(), path),
            78,
            "must have an 'epoch'",
        ),
        (lambda path: torch.save([1, 2], path), 78, "it holds a list"),
        (lambda path: path.write_text("no torch file"), 78, "give a file that torch.load reads"),
        (lambda path: path.write_bytes(b""), 78, "give a file that torch.load reads"),
        (
            lambda path: classic_file(path, model_state_dict={"other": torch.ones(1)}),
            78,
            "layer other is only in the file",
        ),
    ],
    ids=["missing", "foreign", "bare-state-dict", "list", "text", "empty", "mismatch"],
)
def test_unusable_start_file_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, status: int, text: str
) -> None:
    """A start file that does not serve ends the script with the reason, and nothing has changed."""
    path = tmp_path / "old.pth"
    make(path)
    model = torch.nn.Linear(2, 1)
    before = model.weight.clone()
    with (
        pytest.raises(TrainingRefused) as refused,
        a_session(tmp_path / "run", model=model, start_from=path),
    ):
        pass
    assert refused.value.status == status
    message = capsys.readouterr().err
    assert str(path) in message
    assert text in message
    assert torch.equal(model.weight, before)


# --- refusals and damage ---------------------------------------------------------------------


def damage(checkpoint: Checkpoint) -> None:
    with open(checkpoint.state_file, "r+b") as file:
        file.seek(checkpoint.state_file.stat().st_size // 2)
        file.write(b"\xff\x00\xff")


def test_damaged_checkpoint_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest one is damaged: it is set aside, and the one before it is used."""
    stopped_at(tmp_path, 4)
    damage(checkpoints(tmp_path)[-1])
    with a_session(tmp_path) as session:
        assert session.global_step == 1
    assert "moved to quarantine" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints/quarantine").iterdir()] == [
        "step-000000000004"
    ]


def test_checkpoint_that_torch_cannot_load_is_left_alone(tmp_path: Path) -> None:
    """Bytes that are what was written, but that torch refuses, are an ordinary failure."""
    stopped_at(tmp_path, 4)
    newest = checkpoints(tmp_path)[-1].manifest
    store = Store.open(RunDir(tmp_path), [])
    publish_state(
        store, replace(newest, step=5), lambda file: file.write(b"no torch file") and None
    )
    with pytest.raises(RuntimeError, match="cannot load .*step-000000000005"), a_session(tmp_path):
        pass
    assert not (tmp_path / "checkpoints" / "quarantine").exists()
    shutil.rmtree(tmp_path / "checkpoints" / "step-000000000005")
    with a_session(tmp_path) as session:
        assert session.global_step == 4


def test_run_with_only_damaged_checkpoints_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose checkpoints are all damaged never starts from zero: status 65, each time."""
    stopped_at(tmp_path, 4)
    for checkpoint in checkpoints(tmp_path):
        damage(checkpoint)
    for _ in range(2):
        with pytest.raises(TrainingRefused) as refused, a_session(tmp_path):
            pass
        assert refused.value.status == 65
        assert "none of the checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "accepted"), [("1", True), ("", True), ("2", False)])
def test_several_processes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, accepted: bool
) -> None:
    """More than one rank of torchrun is refused with 78 before anything is made."""
    monkeypatch.setenv("WORLD_SIZE", size)
    if accepted:
        with a_session(tmp_path / "run") as session:
            session.step()
        return
    with pytest.raises(TrainingRefused) as refused, a_session(tmp_path / "run"):
        pass
    assert refused.value.status == 78
    assert not (tmp_path / "run").exists()


def test_refused_run_is_free_again(tmp_path: Path) -> None:
    """After a refusal the lock is free and the next session can have the run."""
    stopped_at(tmp_path, 1)
    for _ in range(2):
        with pytest.raises(TrainingRefused), a_session(tmp_path, model=torch.nn.Linear(5, 1)):
            pass
    with a_session(tmp_path) as session:
        assert session.global_step == 1


def test_bad_metric_does_not_cost_the_state_on_a_stop(tmp_path: Path) -> None:
    """A value that is no number, seen first at a stop, does not prevent the save."""
    with pytest.raises(SystemExit) as ended, a_session(tmp_path) as session:
        for step in session.steps(9):
            if step == 5:
                signal.raise_signal(signal.SIGTERM)
                session.step(accuracy=[0.1, 0.2])
            session.step()
    assert saved(tmp_path)[-1] == (6, "emergency")
    assert ended.value.code == 75


def test_bad_metric_at_first_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While there is nothing to lose, a metric that is no number ends the run with its name."""
    with pytest.raises(TrainingRefused) as refused, a_session(tmp_path) as session:
        session.step(grad_norm=None)
    assert refused.value.status == 78
    assert "cannot keep the metric grad_norm" in capsys.readouterr().err


@pytest.mark.parametrize("resumed", [False, True])
def test_bad_metric_later_does_not_end_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    resumed: bool,
) -> None:
    """A value that is no number in the middle of a run is left out, with one warning."""
    monkeypatch.setenv("ORCHESTRATOR_EVERY", "2steps")
    if resumed:
        stopped_at(tmp_path, 1)
    with a_session(tmp_path) as session:
        for step in session.steps(9):
            session.step(loss=1.0, grad_norm=None if resumed or step > 2 else 1.0)
    assert checkpoints(tmp_path)[-1].manifest.metrics == {"loss": 1.0}
    assert capsys.readouterr().err.count("cannot keep the metric grad_norm") == 1
    assert (tmp_path / "done.json").exists()


@pytest.mark.filterwarnings("error")
def test_damaged_old_checkpoint_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged old checkpoint that cannot be moved away is no reason to stop training."""
    monkeypatch.setenv("ORCHESTRATOR_EVERY", "1steps")
    with a_session(tmp_path) as session:
        for step in session.steps(5):
            if step == 2:
                wait_until(lambda: checkpoints(tmp_path), "a checkpoint")
                damage(checkpoints(tmp_path)[0])
                (tmp_path / "checkpoints" / "quarantine").symlink_to("/a/disk/that/is/not/mounted")
            session.step()
    assert (tmp_path / "done.json").exists()


# --- completion ------------------------------------------------------------------------------


def test_finished_run_adds_nothing_when_run_again(tmp_path: Path) -> None:
    """Running a finished script again neither repeats the final checkpoint nor deletes others."""
    for _ in range(3):
        as_new_process()
        with a_session(tmp_path) as session:
            for _ in session.steps(4):
                session.step()
    assert saved(tmp_path) == [(1, "periodic"), (4, "final")]


def test_continued_run_is_not_marked_complete(tmp_path: Path) -> None:
    """While a finished run is trained further, done.json does not say that it is complete."""
    with a_session(tmp_path) as session:
        for _ in session.steps(2):
            session.step()
    as_new_process()
    stopped_at(tmp_path, 4)
    assert not (tmp_path / "done.json").exists()


def test_final_checkpoint_has_what_the_last_evaluation_left(tmp_path: Path) -> None:
    """A loop left early, after its evaluation, ends with the state and metrics of that moment."""
    model = torch.nn.Linear(1, 1)
    loader = DataLoader(TensorDataset(torch.arange(4.0).unsqueeze(1)), 2)
    with a_session(tmp_path, model=model) as session:
        for _ in session.epochs(9):
            for _ in session.batches(loader):
                session.step(loss=1.0)
            session.poll(accuracy=0.75)
            session.state["best"] = 0.75
            with torch.no_grad():
                model.weight.fill_(7.0)  # such as the weights of the best epoch
            break
    final = checkpoints(tmp_path)[-1]
    content = content_of(final)
    assert final.manifest.reason == "final"
    assert content["model_state_dict"]["weight"].item() == 7.0
    assert content["state"] == {"best": 0.75}
    assert final.manifest.metrics == {"loss": 1.0, "accuracy": 0.75}


def test_checkpoint_after_the_evaluation_carries_its_metrics(tmp_path: Path) -> None:
    """A checkpoint that the script asks for after an evaluation can be found by its metric."""
    loader = DataLoader(TensorDataset(torch.arange(4.0)), 2)
    with a_session(tmp_path) as session:
        for _ in session.epochs(1):
            for _ in session.batches(loader):
                session.step(loss=1.0)
            session.poll(accuracy=0.75)
            path = session.checkpoint()
    assert path is not None
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["metrics"] == {"loss": 1.0, "accuracy": 0.75}


# --- a full disk -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 2 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("a small filesystem needs root and mount")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError:
            return filler


def test_full_disk_does_not_end_training(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A save on a full disk fails, older ones stay intact, training goes on, a later one works."""
    model = torch.nn.Linear(300, 300)
    root = small_disk / "run"
    with a_session(root, model=model) as session:
        session.step()
        reserve = root / "reserve"
        # One that is being made as the disk fills is given up, and leaves room.
        wait_until(lambda: reserve.exists() and reserve.stat().st_size, "the first checkpoint")
        filler = fill(small_disk)
        session.step()
        assert session.checkpoint() is None
        assert "No space left on device; older checkpoints are intact" in capsys.readouterr().err
        assert saved(root) == [(1, "periodic")]
        assert not [p.name for p in (root / "checkpoints").iterdir() if p.name.startswith(".")]
        session.step()
        filler.unlink()
        assert session.checkpoint() is not None
    assert saved(root) == [(1, "periodic"), (3, "requested"), (3, "final")]
    as_new_process()
    again = a_session(root, model=torch.nn.Linear(300, 300))
    with again:
        assert again.global_step == 3


def test_stop_on_a_full_disk_uses_the_reserve(small_disk: Path) -> None:
    """The space that was set aside is enough to save the state of a stop."""
    root = small_disk / "run"
    model = torch.nn.Linear(300, 300)
    with pytest.raises(TrainingStopped) as stopped, a_session(root, model=model) as session:
        session.step()
        session.checkpoint()
        fill(small_disk)
        signal.raise_signal(signal.SIGTERM)
        session.step()
    assert stopped.value.status == 75
    assert saved(root) == [(1, "periodic"), (1, "requested"), (2, "emergency")]
    assert not (root / "reserve").exists()


def test_stop_on_a_full_disk_says_unsaved(small_disk: Path) -> None:
    """When the state of a stop cannot be saved the status is 74, and the older one is resumed."""
    root = small_disk / "run"
    model = torch.nn.Linear(300, 300)
    with pytest.raises(TrainingStopped) as stopped, a_session(root, model=model) as session:
        session.step()
        session.checkpoint()
        (root / "reserve").unlink()
        filler = fill(small_disk)
        signal.raise_signal(signal.SIGTERM)
        session.step()
    assert stopped.value.status == 74
    filler.unlink()
    again = a_session(root, model=model)
    with again:
        assert again.global_step == 1
