"""Lightning: the state of a Trainer is that of a session, at every step (docs/integrations.md).

    Trainer(callbacks=[OrchestratorCallback()])

Lightning calls hooks where a session's script would loop. The safe point of a batch is where
Lightning asks for the next one: everything that it does for a batch has been done by then,
validation included. What is saved there is Lightning's own checkpoint. Its counters are put back by
us: where Lightning restarts by itself, it leaves out hooks or a validation after the last batch.
"""

import importlib
import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.durable import replace_file
from orchestrator.errors import ConfigError, UnstorableError
from orchestrator.training import Session
from orchestrator.training.ending import refusing
from orchestrator.training.plain import from_plain, to_plain
from orchestrator.training.state import RESERVED, SUFFIX, Composite

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.plugins.io import TorchCheckpointIO
else:
    # Both names are in use for one code base; hooks are found by their names, not by the class.
    _NAME = "pytorch_lightning" if "pytorch_lightning" in sys.modules else "lightning.pytorch"
    Callback = importlib.import_module(_NAME).Callback
    TorchCheckpointIO = importlib.import_module(f"{_NAME}.plugins.io").TorchCheckpointIO

_KEY = f"trainer{SUFFIX}"
_HYPER_PARAMETERS = (
    *("hparams_name", "hyper_parameters", "hparams_type"),
    *("datamodule_hparams_name", "datamodule_hyper_parameters", "datamodule_hparams_type"),
)


class OrchestratorCallback(Callback):
    """Stops, heartbeat, metrics, snapshots, checkpoints and resume for ``Trainer.fit``."""

    def __init__(self, run_dir: str | Path | None = None) -> None:
        """``run_dir`` is where the run lives when no supervisor says it: runs/<script> else."""
        self._run_dir = run_dir
        self._session: _FitSession | None = None

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Join or open the run, and have the Trainer restore what that has."""
        if stage != "fit":
            return
        # Hooks of callbacks before this one would run twice when an epoch's beginning is repeated.
        trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]
        with refusing():
            if trainer.world_size != 1:
                raise ConfigError(
                    f"cannot train with {trainer.world_size} processes yet: use Trainer(devices=1)"
                )
        # Lightning's would end the training before the safe point, or requeue a SLURM job.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
        session = _FitSession(trainer, self._run_dir)
        session.__enter__()
        self._session = session

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Everything is restored; the loop begins."""
        if self._session is not None:
            self._session.begin()

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """The epoch before is over with everything that belongs to it: a safe point."""
        if self._session is not None:
            self._session.begin_epoch()

    def on_train_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the loss of this batch."""
        if self._session is not None and isinstance(outputs, Mapping) and "loss" in outputs:
            self._session.loss = outputs["loss"]

    def on_validation_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", *batch: Any, **more: Any
    ) -> None:
        """A sign of life."""
        if self._session is not None and not trainer.sanity_checking:
            self._session.poll()

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """The last epoch is over."""
        if self._session is not None:
            self._session.end_epoch()

    def on_fit_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Training is complete."""
        if self._session is not None:
            session, self._session = self._session, None
            session.__exit__(None, None, None)

    def on_exception(
        self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException
    ) -> None:
        """Training was stopped, or has failed."""
        if self._session is not None:
            session, self._session = self._session, None
            session.__exit__(type(exception), exception, exception.__traceback__)


class OrchestratorCheckpointIO(TorchCheckpointIO):
    """Has each file that Lightning saves appear whole or not at all, after a power loss too.

    It loads the ``state.pt`` of our checkpoints too, as ``ckpt_path`` for validate, test, predict.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a file of the local disk durably; what lies elsewhere, as Lightning does."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(path), content.getvalue())

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Lightning's checkpoint, from a file of its own or of ours."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *arguments, **options)
        return from_plain(checkpoint[_KEY]) if _KEY in checkpoint else checkpoint


class _FitSession(Session):
    """A session whose loop is that of ``Trainer.fit``."""

    def __init__(self, trainer: "Trainer", run_dir: str | Path | None) -> None:
        self.loss: Any = None
        self._trainer = trainer
        self._lightning = _LightningState(trainer)
        super().__init__(run_dir=run_dir, trainer=self._lightning)
        self._in_epoch = False
        self._has_batch = False
        self._shown: dict[str, Any] = {}
        strategy = trainer.strategy
        process_dataloader = strategy.process_dataloader

        def process(dataloader: Any) -> Any:
            dataloader = process_dataloader(dataloader)
            return _Batches(self, dataloader) if trainer.training else dataloader

        strategy.process_dataloader = process  # type: ignore[method-assign]

    def begin(self) -> None:
        """Lightning has restored its state and enters its loop."""
        fit_loop = self._trainer.fit_loop
        if self._lightning.begin(fit_loop):
            with refusing():
                self._course.begin_epoch()
            self._in_epoch = True

    def begin_epoch(self) -> None:
        """Lightning begins an epoch."""
        if self._in_epoch:
            self.end_epoch()
            self._safe_points.reach()
        with refusing():
            self._course.begin_epoch()
        self._in_epoch = True

    def end_epoch(self) -> None:
        """Lightning has done all that belongs to the epoch, the last batch's step included."""
        if self._has_batch:
            self._has_batch = False
            self._end_step(**self._metrics_of_step())
        if self._in_epoch:
            self._in_epoch = False
            self._end_epoch()

    def iterate(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of an epoch; Lightning asks for one when it is done with the one before."""
        self._lightning.arrive(self._trainer.fit_loop)
        for batch in self.batches(loader):
            self._has_batch = True
            yield batch
            if self._trainer.fit_loop._should_accumulate():
                self._safe_points.reach()  # where nothing is saved: the step has not been done
            else:
                self._has_batch = False
                self.step(**self._metrics_of_step())

    def _metrics_of_step(self) -> dict[str, Any]:
        """The loss, and what has been logged since the step before."""
        logged = dict(self._trainer.callback_metrics)
        fresh = {k: value for k, value in logged.items() if value is not self._shown.get(k)}
        self._shown = logged
        metrics = ({} if self.loss is None else {"loss": self.loss}) | fresh
        return {
            name: value
            for name, value in metrics.items()
            if name not in RESERVED and not name.endswith(SUFFIX)
        }


class _LightningState(Composite):
    """Lightning's own checkpoint as the state of a registered object."""

    def __init__(self, trainer: "Trainer") -> None:
        self._trainer = trainer
        self._restored: dict[str, Any] | None = None
        self._loops: dict[str, Any] | None = None
        self._has_begun = False

    def parts(self) -> list[Any]:
        """What the session checks for health, and copies with care."""
        return [self._trainer.lightning_module, *self._trainer.optimizers]

    def state_dict(self) -> dict[str, Any]:
        """What Lightning would write into a checkpoint file."""
        if self._restored is not None and not self._has_begun:
            return self._restored  # the Trainer is still about to take it over
        state = self._trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        # Between two epochs nothing of the next one has begun, or Lightning would finish that one
        # instead of beginning it.
        progress = state["loops"]["fit_loop"]["epoch_progress"]
        for tracker in progress.values():
            tracker["ready"] = tracker["started"]
        for key in _HYPER_PARAMETERS:
            if key in state and not _is_storable(state[key]):
                del state[key]  # resuming does not need them, and any object may be among them
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have the Trainer restore this, when and in the order in which it does that.

        What the session would put back later are the counters, which ``arrive`` does.
        """
        if self._has_begun:
            return
        self._restored, self._loops = state, state["loops"]["fit_loop"]
        connector = self._trainer._checkpoint_connector

        def resume_start(*_: Any, **__: Any) -> None:
            connector._loaded_checkpoint = state

        connector.resume_start = resume_start  # type: ignore[method-assign]

    def begin(self, fit_loop: Any) -> bool:
        """The Trainer has taken over what was restored; whether it is in the midst of an epoch."""
        self._has_begun, self._restored = True, None
        if self._loops is None:
            return False
        progress = self._loops["epoch_progress"]["current"]
        fit_loop.load_state_dict(self._loops)
        if progress["started"] == progress["processed"]:
            self._loops = None
            _let_go_on(fit_loop)
            return False
        # It must not skip the hooks that follow this batch, nor repeat those before it.
        fit_loop.update_restart_stage()
        fit_loop.epoch_loop.reset_restart_stage()
        return True

    def arrive(self, fit_loop: Any) -> None:
        """Lightning asks for the first batch: undo what it has counted since it was resumed."""
        if self._loops is not None:
            fit_loop.load_state_dict(self._loops)
            self._loops = None
            _let_go_on(fit_loop)


class _Batches:
    """A training DataLoader as Lightning sees it, whose batches come from the session."""

    def __init__(self, session: _FitSession, loader: Any) -> None:
        self._session = session
        self._loader = loader
        try:
            len(loader)
        except TypeError:
            with refusing():
                raise ConfigError(
                    "cannot train on data without a length yet, since Lightning reads that ahead: "
                    "give the IterableDataset a __len__()"
                ) from None

    def __iter__(self) -> Iterator[Any]:
        return self._session.iterate(self._loader)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _let_go_on(loop: Any) -> None:
    """Take from a loop, and the loops in it, that it has been restarted."""
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    loop.reset_restart_stage()
    for inner in vars(loop).values():
        if hasattr(inner, "reset_restart_stage"):
            _let_go_on(inner)


def _is_storable(value: Any) -> bool:
    try:
        to_plain(value, "hyper_parameters")
    except UnstorableError:
        return False
    return True
