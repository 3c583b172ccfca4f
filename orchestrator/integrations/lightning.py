"""Lightning: the state of a Trainer is that of a session, at every step (docs/how-to/lightning.md).

    Trainer(callbacks=[OrchestratorCallback()])

Lightning calls hooks where a session's script would loop. The safe point of a batch is where
Lightning asks for the next one: everything that it does for a batch has been done by then,
validation included. What is saved there is Lightning's own checkpoint. Its counters are put back by
us: where Lightning restarts by itself, it leaves out hooks or a validation after the last batch.
"""

import importlib
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError
from orchestrator.integrations.lightning_loop import KEY, FitSession
from orchestrator.training.exits import refusing
from orchestrator.training.formats.export import save_durably
from orchestrator.training.state.plain_values import from_plain

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
    from lightning.pytorch.plugins.io import TorchCheckpointIO
else:
    # Both names are in use for one code base; hooks are found by their names, not by the class.
    _NAME = "pytorch_lightning" if "pytorch_lightning" in sys.modules else "lightning.pytorch"
    Callback = importlib.import_module(_NAME).Callback
    TorchCheckpointIO = importlib.import_module(f"{_NAME}.plugins.io").TorchCheckpointIO
    BatchSizeFinder = importlib.import_module(f"{_NAME}.callbacks").BatchSizeFinder
    LearningRateFinder = importlib.import_module(f"{_NAME}.callbacks").LearningRateFinder


class OrchestratorCallback(Callback):
    """Stops, heartbeat, metrics, snapshots, checkpoints and resume for ``Trainer.fit``."""

    def __init__(self, run_dir: str | Path | None = None) -> None:
        """``run_dir`` is where the run lives when no supervisor says it: runs/<script> else."""
        self._run_dir = run_dir
        self._session: FitSession | None = None

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Join or open the run, and have the Trainer restore what that has."""
        if stage != "fit" or _is_for_tuner(trainer):
            return
        # Hooks of callbacks before this one would run twice when an epoch's beginning is repeated.
        trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]
        with refusing():
            if trainer.world_size != 1:
                raise ConfigError(
                    f"cannot train with {trainer.world_size} processes yet: use Trainer(devices=1)"
                )
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
        session = FitSession(trainer, self._run_dir)
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
        self._leave(None)

    def on_exception(
        self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException
    ) -> None:
        """Training was stopped, or has failed."""
        self._leave(exception)

    def _leave(self, error: BaseException | None) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            trace = error.__traceback__ if error else None
            session.__exit__(type(error) if error else None, error, trace)


def _is_for_tuner(trainer: "Trainer") -> bool:
    """Whether this `fit` only looks for a value, and takes back what it has trained for that."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    finders = [each for each in callbacks if isinstance(each, BatchSizeFinder | LearningRateFinder)]
    if not finders or all(finder._early_exit for finder in finders):
        return bool(finders)
    with refusing():
        name = type(finders[0]).__name__
        raise ConfigError(
            f"cannot make the training resumable with {name} among its callbacks, which trains "
            "and takes that back inside of it: use the methods of Tuner before trainer.fit()"
        )


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
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_durably(checkpoint, Path(path), replace=True)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Lightning's checkpoint, from a file of its own or of ours."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *arguments, **options)
        return from_plain(checkpoint[KEY]) if KEY in checkpoint else checkpoint
