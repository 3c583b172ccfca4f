"""A `Session` with an `Accelerator`: a resumed run equals the uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from orchestrator.breakpoints.trial_files import VARIABLE
from orchestrator.checkpoint.store import Store
from orchestrator.rundir.paths import RunDir
from orchestrator.training import Session, TrainingRefused, TrainingStopped
from tests.e2e.support import clean_environment, forked_by, forking_server
from tests.training.support import as_new_process

EXAMPLE = Path(__file__).parents[2] / "examples" / "accelerate_digits.py"
SAMPLES, BATCH, ACCUMULATE, EPOCHS = 22, 4, 4, 2
# Six batches an epoch, the last of two samples; a step after the fourth and after the last.
STEPS = 2
Interruption = tuple[str, int]


class Noisy(Dataset[torch.Tensor]):
    """Points with new noise at each access; the data set has set_epoch()."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4,), index / SAMPLES) + torch.randn(4) * random.random()


class Stream(IterableDataset[torch.Tensor]):
    """Points without noise, as an iterable data set."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.full((4,), index / SAMPLES) for index in range(SAMPLES))


def forget_accelerators() -> None:
    """Reset the state that accelerators share within a process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Training:
    """A script's training loop, with or without ``accelerate``."""

    def __init__(
        self,
        data: Any = None,
        *,
        prepared: bool = True,
        configuration: DataLoaderConfiguration | None = None,
        step_for_each_batch: bool = False,
        seed: int = 0,
        **loader: Any,
    ) -> None:
        forget_accelerators()
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.model: Any = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
        )
        self.optimizer: Any = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.scheduler: Any = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.9)
        self.loader: Any = DataLoader(data or Noisy(), batch_size=BATCH, **loader)
        self.test_loader: Any = DataLoader(TensorDataset(torch.rand(8, 4)), batch_size=4)
        self.step_for_each_batch = step_for_each_batch
        self.accelerator: Accelerator | None = None
        if prepared:
            self.accelerator = Accelerator(
                cpu=True,
                gradient_accumulation_steps=ACCUMULATE,
                dataloader_config=configuration or DataLoaderConfiguration(),
            )
            names = ("model", "optimizer", "scheduler", "loader", "test_loader")
            ready = self.accelerator.prepare(*(getattr(self, name) for name in names))
            self.__dict__.update(zip(names, ready, strict=True))
        self.history: list[float] = []
        self.exactness: str | None = None

    def run(self, run_dir: Path, stop: Interruption | None = None) -> bool:
        """Train, with a SIGTERM at a point of a step; return whether training completed."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        session = Session(run_dir=run_dir, **parts)

        def pass_by(point: str) -> None:
            nonlocal stop
            if stop == (point, len(self.history)):
                stop = None
                signal.raise_signal(signal.SIGTERM)

        try:
            with session:
                self.history = session.state.setdefault("history", [])
                for _ in session.epochs(EPOCHS):
                    self.model.train()
                    session.state["batches"] = 0
                    for batch in session.batches(self.loader):
                        session.state["batches"] += 1
                        loss, updated = self.learn(batch, session.state["batches"])
                        if updated:
                            self.history.append(loss.item() + random.random() + np.random.random())
                            pass_by("step")
                        else:
                            pass_by("batch")
                        if updated or self.step_for_each_batch:
                            session.step(loss=loss)
                    self.model.eval()
                    for _ in session.batches(self.test_loader):
                        pass_by("evaluation")
                        session.poll()
                self.exactness = session.exactness
        except TrainingStopped as end:
            assert end.status == 75
            return False
        return True

    def learn(self, batch: torch.Tensor, number: int) -> tuple[torch.Tensor, bool]:
        """Train one batch; return whether the weights were updated."""
        if self.accelerator is None:
            loss = self.loss(batch)
            (loss / ACCUMULATE).backward()  # type: ignore[no-untyped-call]
            updated = number % ACCUMULATE == 0 or number == len(self.loader)
            if updated:
                self.update()
            return loss, updated
        with self.accelerator.accumulate(self.model):
            loss = self.loss(batch)
            self.accelerator.backward(loss)
            self.update()
        return loss, self.accelerator.sync_gradients

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor((self.model(batch) - batch.sum(1, keepdim=True)).square().mean())

    def update(self) -> None:
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def result(self) -> dict[str, str]:
        """Return everything that must be equal bit for bit, as text."""
        torch.set_printoptions(precision=20, threshold=10_000)
        parts = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state(),
        }
        return {name: str(part) for name, part in parts.items()}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [n for n in os.environ if n.startswith("ORCHESTRATOR_")]:
        monkeypatch.delenv(name)
    torch.set_num_threads(1)
    yield
    forget_accelerators()
    torch.set_printoptions(profile="default")


def whole(root: Path, **options: Any) -> dict[str, str]:
    """Return the result of the uninterrupted run."""
    training = Training(**options)
    assert training.run(root / "whole")
    return training.result()


INTERRUPTIONS: list[Interruption] = [
    ("step", 1),
    ("batch", 1),  # in the middle of an accumulation
    ("step", STEPS),  # after the last batch of the epoch
    ("evaluation", STEPS),
    ("batch", STEPS),
    ("step", EPOCHS * STEPS),
]
LOADERS: list[dict[str, Any]] = [
    {"shuffle": True},
    {"shuffle": False, "num_workers": 2},
    {"shuffle": True, "num_workers": 2, "persistent_workers": True},
]


@pytest.mark.processes
@pytest.mark.parametrize("loader", LOADERS, ids=["shuffled", "workers", "persistent"])
def test_run_interrupted_anywhere_equals_the_uninterrupted_run(
    tmp_path: Path, loader: dict[str, Any]
) -> None:
    """Weights, optimizer, streams and history are equal, with accelerate and without it."""
    expected = whole(tmp_path, **loader)
    for interruption in INTERRUPTIONS:
        run_dir = tmp_path / f"{interruption[0]}-{interruption[1]}"
        assert not Training(**loader).run(run_dir, interruption), interruption
        second = Training(**loader)
        assert second.run(run_dir)
        assert second.result() == expected, interruption
        assert second.exactness == "EXACT", interruption
    plain = Training(prepared=False, **loader)
    plain.run(tmp_path / "plain")
    assert plain.result() == expected


@pytest.mark.parametrize("first", [True, False], ids=["from-prepared", "to-prepared"])
def test_checkpoint_resumes_with_or_without_accelerate(tmp_path: Path, first: bool) -> None:
    """The keys are those of the plain objects, so a script may add or remove accelerate."""
    loader = {"shuffle": True, "drop_last": True}
    expected = whole(tmp_path, **loader)
    Training(prepared=first, **loader).run(tmp_path / "run", ("step", 3))
    newest = Store.open(RunDir(tmp_path / "run"), []).all()[-1]
    keys = {key for key in torch.load(newest.state_file) if key.endswith("_state_dict")}
    assert keys == {"model_state_dict", "optimizer_state_dict", "scheduler_state_dict"}
    second = Training(prepared=not first, **loader)
    assert second.run(tmp_path / "run")
    assert second.result() == expected
    assert second.exactness == "EXACT"


def test_mismatch_of_prepared_objects_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An optimizer or scheduler that differs from the file's is refused, as without accelerate."""
    Training().run(tmp_path / "run", ("step", 1))
    for name, other in (
        ("optimizer", lambda model, _: torch.optim.SGD(model.parameters(), lr=0.01)),
        ("scheduler", lambda _, optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)),
    ):
        second = Training()
        assert second.accelerator is not None
        changed = other(second.model, second.optimizer.optimizer)
        setattr(second, name, second.accelerator.prepare(changed))
        with pytest.raises(TrainingRefused):
            second.run(tmp_path / "run")
        assert f"{name}: " in capsys.readouterr().err


def test_save_while_gradients_accumulate_waits_for_the_update(tmp_path: Path) -> None:
    """Accumulated gradients are in no checkpoint, so none is made before the update."""
    options = {"shuffle": True, "step_for_each_batch": True}
    expected = whole(tmp_path, **options)
    for stop, saved_at in ((("batch", 1), 6), (("batch", 0), 4)):
        run_dir = tmp_path / f"run-{stop[1]}"
        assert not Training(**options).run(run_dir, stop)
        assert Store.open(RunDir(run_dir), []).all()[-1].manifest.step == saved_at
        second = Training(**options)
        assert second.run(run_dir)
        assert second.result() == expected
        assert second.exactness == "EXACT"


def test_explicit_save_while_gradients_accumulate_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """session.checkpoint() during an accumulation is refused, with the place to call it."""
    training = Training()
    assert training.accelerator is not None
    parts = {"model": training.model, "optimizer": training.optimizer}
    with pytest.raises(TrainingRefused), Session(run_dir=tmp_path, **parts) as session:
        for batch in session.batches(training.loader):
            with training.accelerator.accumulate(training.model):
                training.loss(batch)
            session.step()
            session.checkpoint()
    assert "where accelerator.sync_gradients is true" in capsys.readouterr().err


CONFIGURATIONS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "seedable": (Noisy, {"use_seedable_sampler": True}),
    "stateful": (Noisy, {"use_stateful_dataloader": True}),
    "dispatched": (Noisy, {"dispatch_batches": True}),
    "uneven": (Noisy, {"even_batches": False, "non_blocking": True}),
    "iterable": (Stream, {}),
    "iterable-stateful": (Stream, {"use_stateful_dataloader": True}),
}


@pytest.mark.filterwarnings("ignore:skipping .* batches by reading them")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_kind_of_accelerate_loader_resumes(tmp_path: Path, name: str) -> None:
    """Each way in which accelerate loads data resumes at its position, at a pass's end too."""
    data, configuration = CONFIGURATIONS[name]

    def options() -> dict[str, Any]:
        shuffle = {"shuffle": True} if data is Noisy else {}
        return {
            "data": data(),
            "configuration": DataLoaderConfiguration(**configuration),
            **shuffle,
        }

    expected = whole(tmp_path, **options())
    for interruption in INTERRUPTIONS[1:4]:
        run_dir = tmp_path / f"{interruption[0]}-{interruption[1]}"
        assert not Training(**options()).run(run_dir, interruption), interruption
        second = Training(**options())
        assert second.run(run_dir)
        assert second.result() == expected, interruption
        assert second.exactness == "EXACT", interruption


@pytest.mark.parametrize("seedable", [False, True])
def test_sampler_of_a_script_without_a_seed_resumes(tmp_path: Path, seedable: bool) -> None:
    """Torch's sampler resumes exactly; accelerate's keeps its seed, and the session says so."""

    def options() -> dict[str, Any]:
        configuration = DataLoaderConfiguration(use_seedable_sampler=seedable)
        return {"configuration": configuration, "shuffle": True}

    expected = whole(tmp_path, **options())
    Training(**options()).run(tmp_path / "run", ("step", 1))
    second = Training(**options(), seed=1)
    assert second.run(tmp_path / "run")
    assert (second.result() == expected) is not seedable
    reason = "pass 1 over the data continues with other samples than expected"
    assert second.exactness == (f"APPROXIMATE: {reason}" if seedable else "EXACT")


def test_data_set_gets_the_number_of_the_pass(tmp_path: Path) -> None:
    """set_epoch() gets the number of the pass, which accelerate would start at 0 again."""
    Training().run(tmp_path / "run", ("step", STEPS + 1))
    second = Training()
    assert second.run(tmp_path / "run")
    assert second.loader.dataset.epoch == 1


def test_last_batch_of_a_resumed_pass_is_known(tmp_path: Path) -> None:
    """The attributes that accelerate reads from a loader are right in a resumed pass."""
    first = Training()
    first.run(tmp_path / "run", ("step", 1))
    second = Training()
    seen = []
    with Session(
        run_dir=tmp_path / "run",
        model=second.model,
        optimizer=second.optimizer,
        scheduler=second.scheduler,
    ) as session:
        for _ in session.epochs(1):
            for _ in session.batches(second.loader):
                state = GradientState()
                seen.append((state.end_of_dataloader, state.remainder))
                session.step()
    assert seen == [(False, 2), (True, 2)]


def test_gradient_scaler_is_restored(tmp_path: Path) -> None:
    """The scaler is stored as `scaler`, although the script registers only the optimizer."""

    def parts() -> tuple[torch.amp.GradScaler, AcceleratedOptimizer, Any]:
        model = torch.nn.Linear(2, 1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        optimizer = AcceleratedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler)
        return scaler, optimizer, model

    Accelerator(cpu=True)
    scaler, optimizer, model = parts()
    with Session(run_dir=tmp_path, model=model, optimizer=optimizer) as session:
        for _ in session.steps(3):
            scaler.scale(model(torch.ones(1, 2)).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
            session.step()
    assert scaler.state_dict()["scale"] == 16.0
    again, optimizer, model = parts()
    as_new_process()
    with Session(run_dir=tmp_path, model=model, optimizer=optimizer, scaler=again):
        assert again.state_dict() == scaler.state_dict()


@pytest.mark.processes
def test_example_survives_kills_and_a_stop(tmp_path: Path) -> None:
    """Three SIGKILLs and a SIGTERM change no bit of the example's run under the supervisor."""
    address = tmp_path / "server"
    faults = "sigkill@any,sigkill@step,sigkill@evaluation,sigterm@any"
    with forking_server(address, "accelerate", "sklearn.datasets", **{VARIABLE: ""}):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "orchestrator", "chaos"),
                *("--faults", faults, "--seed", "1", "--json"),
                *("--", *forked_by(address), str(EXAMPLE)),
                *("--epochs", "2", "--workers", "2", "--batch-size", "48"),
            ],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["injected"] == report["survived"] == report["exact"] == 4, report
