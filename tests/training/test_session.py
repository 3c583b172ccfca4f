"""A session in the test's own process, without a supervisor."""

import json
import multiprocessing
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.paths import RunDir
from orchestrator.training import Session, TrainingRefused, TrainingStopped
from tests.training.support import Training, as_new_process


def store_of(root: Path) -> Store:
    return Store.open(RunDir(root), [])


def reasons(root: Path) -> list[tuple[int, str]]:
    return [(c.manifest.step, c.manifest.reason.value) for c in store_of(root).all()]


def train(root: Path, steps: int, model: torch.nn.Module | None = None) -> Session:
    as_new_process()
    session = Session(run_dir=root, model=model or torch.nn.Linear(2, 1))
    with session:
        for _ in session.steps(steps):
            session.step(loss=1.0)
    return session


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("10m", [(1, "periodic"), (10, "final")]),
        ("4steps", [(1, "periodic"), (4, "periodic"), (8, "periodic"), (10, "final")]),
    ],
)
def test_checkpoints_follow_the_schedule_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: str, expected: list[tuple[int, str]]
) -> None:
    """The first step is saved, then every so often, then the end."""
    monkeypatch.setenv("ORCHESTRATOR_EVERY", every)
    monkeypatch.setenv("ORCHESTRATOR_KEEP", "9")
    train(tmp_path, 10)
    assert reasons(tmp_path) == expected
    assert json.loads((tmp_path / "done.json").read_text())["step"] == 10


def test_schedule_by_epochs_saves_at_each_epoch_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`1epoch` saves at each epoch's edge."""
    monkeypatch.setenv("ORCHESTRATOR_EVERY", "1epoch")
    monkeypatch.setenv("ORCHESTRATOR_KEEP", "9")
    Training(epochs=2).run(tmp_path)
    manifests = [c.manifest for c in store_of(tmp_path).all()]
    assert [(m.step, m.epoch) for m in manifests] == [(1, 0), (6, 1), (12, 2), (12, 2)]


def test_file_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    """torch.load reads state.pt with its safe default, and classic resume code works on it."""
    training = Training(epochs=2)
    training.run(tmp_path)
    checkpoint = torch.load(store_of(tmp_path).all()[-1].state_file)
    fresh = Training()
    fresh.model.load_state_dict(checkpoint["model_state_dict"])
    fresh.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    assert checkpoint["epoch"] == 2
    assert 0 < checkpoint["loss"] < training.history[-1]


@pytest.mark.parametrize("key", ["epoch", "step"])
def test_classic_file_with_an_odd_count_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str
) -> None:
    """A count that is no whole number is named, with 78 and no traceback."""
    model = torch.nn.Linear(2, 1)
    content = {"epoch": 1, "model_state_dict": model.state_dict()} | {key: "last"}
    torch.save(content, tmp_path / "old.pth")
    session = Session(run_dir=tmp_path / "run", start_from=tmp_path / "old.pth", model=model)
    with pytest.raises(TrainingRefused) as caught, session:
        pass
    assert caught.value.status == 78
    assert f"its '{key}' is 'last', not a whole number" in capfd.readouterr().err


def test_epoch_with_one_step_is_not_repeated(tmp_path: Path) -> None:
    """In a loop without batches a stop waits for the epoch's end, so that none is done twice."""
    done: list[int] = []

    def run(stop_in: int | None) -> None:
        model = torch.nn.Linear(1, 1)
        with Session(run_dir=tmp_path, model=model) as session:
            for epoch in session.epochs(4):
                done.append(epoch)
                if epoch == stop_in:
                    signal.raise_signal(signal.SIGTERM)
                session.step(loss=0.0)

    with pytest.raises(TrainingStopped):
        run(stop_in=1)
    run(stop_in=None)
    assert done == [0, 1, 2, 3]


def test_epoch_with_unknown_batches_resumes_approximately(tmp_path: Path) -> None:
    """An epoch whose batches the session does not know starts over, and the session says so."""

    def run(stop: bool) -> Session:
        session = Session(run_dir=tmp_path, model=torch.nn.Linear(1, 1))
        with session:
            for _ in session.epochs(1):
                for number in range(5):
                    if stop and number == 3:
                        signal.raise_signal(signal.SIGTERM)
                    session.step()
        return session

    with pytest.raises(TrainingStopped):
        run(stop=True)
    exactness = run(stop=False).exactness
    assert exactness is not None
    assert exactness.startswith("APPROXIMATE: the epoch starts over")


def test_classic_file_starts_a_run(tmp_path: Path) -> None:
    """A file in the classic form gives weights and epoch to a run without checkpoints."""
    old = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(old.parameters(), lr=0.1)
    torch.save(
        {
            "epoch": 3,
            "model_state_dict": old.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "loss": 0.5,
        },
        tmp_path / "old.pth",
    )
    new = torch.nn.Linear(2, 1)
    parts = {"model": new, "optimizer": torch.optim.SGD(new.parameters(), lr=0.1)}
    epochs = []
    with Session(run_dir=tmp_path / "run", start_from=tmp_path / "old.pth", **parts) as session:
        assert torch.equal(new.weight, old.weight)
        for epoch in session.epochs(5):
            epochs.append(epoch)
            session.step()
    assert epochs == [3, 4]


@pytest.mark.parametrize("content", [None, {"weights": 1}, "text"])
def test_unusable_start_is_refused(tmp_path: Path, content: object) -> None:
    """A missing or foreign start file ends with 78 before anything is touched."""
    if content is not None:
        torch.save(content, tmp_path / "old.pth")
    session = Session(
        run_dir=tmp_path / "run", start_from=tmp_path / "old.pth", model=torch.nn.Linear(2, 1)
    )
    with pytest.raises(TrainingRefused) as refused, session:
        pass
    assert refused.value.status == 78


def test_mismatch_touches_nothing_and_lists_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint of another architecture is refused with 78 and no live tensor has changed."""
    train(tmp_path, 2)
    wider = torch.nn.Linear(3, 1)
    before = wider.weight.clone()
    with pytest.raises(TrainingRefused) as refused:
        train(tmp_path, 4, wider)
    assert refused.value.status == 78
    assert "layer weight is [1, 2] in the file, [1, 3] here" in capsys.readouterr().err
    assert torch.equal(wider.weight, before)


def test_missing_and_unused_names_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every registered object must be in the file, and the other way round."""
    train(tmp_path, 2)
    as_new_process()
    with pytest.raises(TrainingRefused), Session(run_dir=tmp_path, net=torch.nn.Linear(2, 1)):
        pass
    text = capsys.readouterr().err
    assert "net is registered, but not in the file" in text
    assert "model is in the file, but not registered" in text


def test_unstorable_value_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A value without a safe form is named at the first save, status 78."""
    session = Session(run_dir=tmp_path, model=torch.nn.Linear(2, 1))
    with pytest.raises(TrainingRefused) as refused, session:
        session.state["config"] = {"hook": print}
        for _ in session.steps(1):
            session.step()
    assert refused.value.status == 78
    assert "session.state['config']['hook']" in capsys.readouterr().err


def test_non_finite_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    """A checkpoint with a NaN weight is kept, marked, and passed over on resume."""
    model = torch.nn.Linear(2, 1)
    session = Session(run_dir=tmp_path, model=model)
    with pytest.raises(ZeroDivisionError), session:
        for step in session.steps(9):
            if step == 3:
                torch.nn.init.constant_(model.weight, float("nan"))
            session.step(loss=1.0)
            if step in (1, 4):
                session.checkpoint()
            if step == 5:
                raise ZeroDivisionError
    assert [c.manifest.healthy for c in store_of(tmp_path).all()] == [True, True, False]
    again = Session(run_dir=tmp_path, model=torch.nn.Linear(2, 1))
    with again:
        assert again.global_step == 2


def test_run_in_use_is_refused(tmp_path: Path) -> None:
    """A session on a locked run ends with 69."""
    run = RunDir(tmp_path)
    run.create()
    lock = RunLock(run)
    with pytest.raises(TrainingRefused) as refused:
        train(tmp_path, 1)
    lock.close()
    assert refused.value.status == 69


def test_leaving_early_is_not_completion(tmp_path: Path) -> None:
    """sys.exit(0) inside the block does not mark the run complete; the next session resumes."""
    session = Session(run_dir=tmp_path, model=torch.nn.Linear(2, 1))
    with pytest.raises(SystemExit), session:
        for _ in session.steps(5):
            session.step()
            raise SystemExit(0)
    assert not (tmp_path / "done.json").exists()
    assert train(tmp_path, 5).resumed_from is not None


def test_signal_handlers_and_dataloader_are_restored_after_the_session(tmp_path: Path) -> None:
    """Signal handlers and DataLoader are as before after the session, and a nohup stays one."""
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)]
    iterate = DataLoader.__iter__
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Session(run_dir=tmp_path, model=torch.nn.Linear(2, 1)):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != before[0]
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)] == before
    assert DataLoader.__iter__ is iterate


def test_ending_a_child_of_the_script_does_not_stop_training(tmp_path: Path) -> None:
    """A process forked by the script can be terminated without the session hearing of it."""
    session = Session(run_dir=tmp_path, model=torch.nn.Linear(2, 1))
    with session:
        fork = multiprocessing.get_context("fork")
        runs = fork.Event()
        child = fork.Process(target=lambda: (runs.set(), signal.pause()))
        child.start()
        assert runs.wait(timeout=20)
        child.terminate()
        child.join(timeout=20)
        assert child.exitcode == -signal.SIGTERM
        for _ in session.steps(2):
            session.step()
    assert (tmp_path / "done.json").exists()


@pytest.mark.parametrize("entered", [False, True], ids=["never entered", "left"])
def test_session_outside_of_its_block_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entered: bool
) -> None:
    """Before the `with` block and after it a step has a message and 78, and no traceback."""
    session = Session(run_dir=tmp_path, model=torch.nn.Linear(2, 1))
    if entered:
        with session:
            session.step()
    for use in (session.step, session.poll, session.checkpoint, lambda: next(session.epochs(9))):
        with pytest.raises(TrainingRefused) as refused:
            use()
        assert refused.value.status == 78
        assert "cannot use a session outside of its `with` block" in capsys.readouterr().err
