"""Lightning's real Trainer, interrupted at every kind of point, ends with the same result."""

import functools
import logging
import random
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, Dataset, IterableDataset

from orchestrator.checkpoint.store import Store
from orchestrator.integrations.lightning import OrchestratorCallback, OrchestratorCheckpointIO
from orchestrator.rundir.journal import Journal
from orchestrator.rundir.paths import RunDir
from orchestrator.training import TrainingRefused, TrainingStopped
from tests.training.support import as_new_process

# Ten batches an epoch, three epochs.
TRAINER = {
    "max_epochs": 3,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
Cut = tuple[str, int]


class Noisy(Dataset[torch.Tensor]):
    """Points with new noise at each access, as with augmentation."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4,), index / 20) + torch.randn(4) * random.random()


class Net(pl.LightningModule):
    """A module with dropout and Adam that records the hooks that Lightning calls."""

    def __init__(self, plateau: bool = False, cut: Cut | None = None) -> None:
        super().__init__()
        # What cannot be stored, as hyperparameters often cannot.
        self.save_hyperparameters({"activation": torch.nn.ReLU(), "width": 4})
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.3))
        self.plateau, self.cut = plateau, cut
        self.events: list[str] = []

    def note(self, event: str) -> None:
        """Record a hook, and send a SIGTERM if the training is to be interrupted here."""
        self.events.append(f"{event} {self.trainer.global_step} {self.trainer.current_epoch}")
        if self.cut == (event, self.trainer.global_step):
            signal.raise_signal(signal.SIGTERM)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.net(batch) - batch).square().mean()

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        loss = self.loss(sum(batch) if isinstance(batch, (list, tuple)) else batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, number: int) -> None:
        if not self.trainer.sanity_checking:
            self.log("val_loss", self.loss(batch) + torch.rand(()))
            self.note("validation")

    def on_train_batch_start(self, *_: Any) -> None:
        self.note("start")

    def on_train_batch_end(self, *_: Any) -> None:
        self.note("batch")

    def on_train_epoch_start(self) -> None:
        self.note("begin")

    def on_train_epoch_end(self) -> None:
        self.note("end")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        if self.plateau:
            scheduler: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"},
            }
        by_step = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        by_epoch = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return [optimizer], [{"scheduler": by_step, "interval": "step"}, by_epoch]


class Fit:
    """Run one `fit`, which ``cut`` may stop."""

    def __init__(
        self,
        root: Path,
        cut: Cut | None = None,
        *,
        plateau: bool = False,
        workers: int = 0,
        loaders: int = 1,
        callbacks: Sequence[pl.Callback] = (),
        **trainer: Any,
    ) -> None:
        as_new_process()
        pl.seed_everything(0, workers=True, verbose=False)
        self.net = Net(plateau, cut)
        self.trainer = pl.Trainer(
            **(TRAINER | trainer),  # type: ignore[arg-type]
            callbacks=[*callbacks, OrchestratorCallback(root)],
        )
        data = Noisy()
        one_of = [DataLoader(data, 2, shuffle=True, num_workers=workers) for _ in range(loaders)]
        loader = one_of if loaders > 1 else one_of[0]
        self.stopped = False
        try:
            self.trainer.fit(self.net, loader, DataLoader(data, 10))
        except TrainingStopped as end:
            assert end.status == 75
            self.stopped = True

    def result(self) -> dict[str, Any]:
        """Return everything that must be equal bit for bit."""
        return {
            **self.net.state_dict(),
            "optimizer": str(self.trainer.optimizers[0].state_dict()),
            "schedulers": str(
                [c.scheduler.state_dict() for c in self.trainer.lr_scheduler_configs]
            ),
            "loops": self.trainer.fit_loop.state_dict(),
            "random": torch.get_rng_state(),
        }


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the uninterrupted training, made once for each way of training."""

    @functools.cache
    def get(settings: tuple[tuple[str, Any], ...]) -> Fit:
        return Fit(tmp_path_factory.mktemp("whole"), **dict(settings))

    return get


PLAIN: dict[str, Any] = {}
HALF = {"val_check_interval": 0.5}
CASES = [
    pytest.param(PLAIN, [("batch", 1)], id="after the first step"),
    pytest.param(PLAIN, [("batch", 4), ("batch", 14), ("batch", 17)], id="in mid-epoch"),
    pytest.param(PLAIN, [("batch", 9), ("batch", 10)], id="before an epoch's last batch"),
    pytest.param(PLAIN, [("validation", 10), ("end", 20)], id="at an epoch's edge"),
    pytest.param(PLAIN, [("begin", 10), ("begin", 20)], id="at an epoch's beginning"),
    pytest.param(HALF, [("batch", 5), ("validation", 15), ("batch", 20)], id="by a validation"),
    pytest.param(
        {"accumulate_grad_batches": 3}, [("batch", 2), ("batch", 4), ("batch", 9)], id="accumulated"
    ),
    pytest.param(
        {"accumulate_grad_batches": 3}, [("start", 2), ("start", 5)], id="while accumulating"
    ),
    pytest.param({"max_steps": 25, "max_epochs": -1}, [("batch", 7), ("end", 20)], id="max_steps"),
    pytest.param({"plateau": True}, [("batch", 6), ("validation", 20)], id="plateau"),
    pytest.param(
        {"check_val_every_n_epoch": None, "val_check_interval": 7},
        [("batch", 7), ("batch", 14), ("batch", 20)],
        id="validation over epochs",
    ),
    pytest.param({"loaders": 2}, [("batch", 4), ("end", 10), ("batch", 28)], id="two loaders"),
    pytest.param({"workers": 2}, [("batch", 13)], id="workers"),
]


@pytest.mark.parametrize(("settings", "cuts"), CASES)
def test_interrupted_training_ends_with_the_same_bits(
    tmp_path: Path, uninterrupted: Any, settings: dict[str, Any], cuts: list[Cut]
) -> None:
    """Weights, optimizer, schedulers, counters and random stream are equal; each hook ran once."""
    expected = uninterrupted(tuple(settings.items()))
    assert not expected.stopped
    events: list[str] = []
    for cut in [*cuts, None]:
        fit = Fit(tmp_path, cut, **settings)
        assert fit.stopped == (cut is not None)
        events += fit.net.events
    mine, whole = fit.result(), expected.result()
    for key, value in whole.items():
        equal = torch.equal(mine[key], value) if torch.is_tensor(value) else mine[key] == value
        assert equal, key
    assert events == expected.net.events


@pytest.mark.parametrize(
    ("settings", "total_steps", "total_epochs"),
    [
        ({}, 30, 3),
        ({"accumulate_grad_batches": 3}, 12, 3),
        ({"limit_train_batches": 4}, 12, 3),
        ({"max_steps": 25, "max_epochs": -1}, 25, None),
    ],
    ids=["epochs", "accumulated", "limited", "steps"],
)
def test_totals_are_those_of_the_trainer(
    tmp_path: Path, settings: dict[str, Any], total_steps: int, total_epochs: int | None
) -> None:
    """The journal knows them when the run is stopped in mid-epoch and when it is complete."""
    for cut in (("batch", 6), None):
        Fit(tmp_path, cut, **settings)
    ends = [e for e in Journal(RunDir(tmp_path).journal_file).read()[0] if "total_steps" in e]
    assert [(end["event"], end["step"]) for end in ends] == [
        ("run_stopped", 6),
        ("run_completed", total_steps),
    ]
    for end in ends:
        assert (end["total_steps"], end["total_epochs"]) == (total_steps, total_epochs)


def test_stop_in_the_last_step_lets_training_complete(tmp_path: Path, uninterrupted: Any) -> None:
    """A stop at the last step lets the run complete, and the next start does nothing."""
    fit = Fit(tmp_path, ("batch", 30))
    assert not fit.stopped
    assert RunDir(tmp_path).done_file.exists()
    assert fit.net.events == uninterrupted(()).net.events
    assert Fit(tmp_path).net.events == []


def test_complete_run_continues_for_more_epochs(tmp_path: Path, uninterrupted: Any) -> None:
    """With more epochs in the script, the result is that of a run with as many from the start."""
    Fit(tmp_path, max_epochs=2)
    longer = Fit(tmp_path)
    for name, value in uninterrupted(()).net.state_dict().items():
        assert torch.equal(longer.net.state_dict()[name], value)


def test_second_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second fit would begin at the first's end, with the same Trainer or with another one."""
    fit = Fit(tmp_path)
    for trainer in (
        fit.trainer,
        pl.Trainer(**TRAINER, callbacks=[OrchestratorCallback(tmp_path)]),
    ):  # type: ignore[arg-type]
        with pytest.raises(TrainingRefused) as refused:
            trainer.fit(Net(), DataLoader(Noisy(), 2))
        assert refused.value.status == 78
        assert "a run is one training" in capsys.readouterr().err


class Tuned(Net):
    """A module without schedulers, whose learning rate and batch size a Tuner finds."""

    def __init__(self, cut: Cut | None = None) -> None:
        super().__init__(cut=cut)
        self.hparams.clear()  # Lightning would not load its own file of the search
        self.lr, self.batch_size = 0.01, 2

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(Noisy(), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(Noisy(), 10)


def tuned_and_trained(root: Path, cut: Cut | None = None) -> Tuned:
    """One attempt of a script that looks for both with the Trainer that then trains."""
    as_new_process()
    pl.seed_everything(0, workers=True, verbose=False)
    net = Tuned()
    trainer = pl.Trainer(
        **(TRAINER | {"enable_checkpointing": True, "default_root_dir": root}),  # type: ignore[arg-type]
        callbacks=[OrchestratorCallback(root / "run")],
    )
    tuner = Tuner(trainer)
    tuner.scale_batch_size(net, max_trials=2, steps_per_trial=1)
    tuner.lr_find(net, num_training=20)
    assert not (root / "run").exists() or cut is None
    net.events, net.cut = [], cut
    trainer.fit(net)
    return net


def test_search_by_a_tuner_is_not_part_of_the_run(tmp_path: Path) -> None:
    """A Tuner leaves nothing in the run, which begins after it and resumes exactly."""
    expected = tuned_and_trained(tmp_path / "whole")
    assert expected.lr != 0.01
    assert expected.batch_size != 2
    assert expected.trainer.global_step == 3 * len(expected.train_dataloader())
    with pytest.raises(TrainingStopped):
        tuned_and_trained(tmp_path / "cut", ("batch", 2))
    again = tuned_and_trained(tmp_path / "cut")
    assert again.trainer.global_step == expected.trainer.global_step
    for name, value in expected.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize("finder", [BatchSizeFinder(), LearningRateFinder()])
def test_search_inside_the_training_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finder: pl.Callback
) -> None:
    """A finder callback would train and undo it inside the run, in every attempt."""
    trainer = pl.Trainer(**TRAINER, callbacks=[finder, OrchestratorCallback(tmp_path)])  # type: ignore[arg-type]
    with pytest.raises(TrainingRefused) as refused:
        trainer.fit(Tuned())
    assert refused.value.status == 78
    assert "Tuner" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Fetching(Net):
    def training_step(self, dataloader_iter: Any) -> torch.Tensor:  # type: ignore[override]
        return self.loss(next(dataloader_iter)[0])


def test_fetching_batches_inside_a_step_is_refused(tmp_path: Path) -> None:
    """training_step(dataloader_iter) leaves no safe point between two batches."""
    trainer = pl.Trainer(**TRAINER, callbacks=[OrchestratorCallback(tmp_path)])  # type: ignore[arg-type]
    with pytest.raises(TrainingRefused) as refused:
        trainer.fit(Fetching(), DataLoader(Noisy(), 2))
    assert refused.value.status == 78


def test_checkpoint_holds_lightnings_own_checkpoint(tmp_path: Path) -> None:
    """torch.load reads it with its safe default, and Lightning loads it as a ckpt_path."""
    fit = Fit(tmp_path)
    newest = Store.open(RunDir(tmp_path), []).all()[-1]
    content = torch.load(newest.state_file, weights_only=True)["trainer_state_dict"]
    assert content["global_step"] == 30
    assert "hyper_parameters" not in content
    torch.save(content, tmp_path / "exported.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "exported.ckpt")
    for name, value in fit.net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


class Endless(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.zeros(4)


def test_data_without_a_length_is_refused_by_lightning_callback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning reads such data one batch ahead, so the safe points would be at other batches."""
    trainer = pl.Trainer(**TRAINER, callbacks=[OrchestratorCallback(tmp_path)])  # type: ignore[arg-type]
    with pytest.raises(TrainingRefused) as refused:
        trainer.fit(Net(), DataLoader(Endless(), 2))
    assert refused.value.status == 78
    assert "__len__" in capsys.readouterr().err


def test_lightnings_own_signal_handlers_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a SLURM job they would save inside the handler and requeue the job."""
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, "0")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    assert Fit(tmp_path, ("batch", 4)).stopped
    assert {number: signal.getsignal(number) for number in before} == before
    assert not list(Path.cwd().glob("hpc_ckpt*"))


def test_checkpoint_io_writes_durably_and_loads_a_state_file(tmp_path: Path) -> None:
    """The CheckpointIO saves Lightning's files durably, and loads a state.pt as a ckpt_path."""
    saving = ModelCheckpoint(tmp_path / "own", save_last=True)
    plugin = OrchestratorCheckpointIO()
    fit = Fit(tmp_path / "run", enable_checkpointing=True, plugins=[plugin], callbacks=[saving])
    own = torch.load(tmp_path / "own" / "last.ckpt", weights_only=False)
    newest = Store.open(RunDir(tmp_path / "run"), []).all()[-1]
    loaded = plugin.load_checkpoint(newest.state_file)
    for name, value in fit.net.state_dict().items():
        assert torch.equal(own["state_dict"][name], value)
        assert torch.equal(loaded["state_dict"][name], value)
    assert [path.name for path in (tmp_path / "own").iterdir() if path.name[0] == "."] == []
    fit.trainer.validate(fit.net, DataLoader(Noisy(), 10), ckpt_path=str(newest.state_file))
