"""The callback that makes ``Trainer.fit`` of Lightning resumable at every step.

    Trainer(callbacks=[OrchestratorCallback()])

Lightning calls hooks where a session's script has a loop. The safe point of a batch is the moment
at which Lightning asks for the next batch: everything that it does for a batch is then done,
including a validation. The content of a checkpoint is Lightning's own checkpoint. This module
restores Lightning's counters itself, because after a restart of its own Lightning leaves out hooks,
or a validation after the last batch. docs/how-to/lightning.md is for users.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError
from orchestrator.integrations.lightning_loop import KEY, FitSession
from orchestrator.training.exits import refusing
from orchestrator.training.formats.export import save_durably
from orchestrator.training.runtime.rank_link import World
from orchestrator.training.state.plain_values import from_plain

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
    from lightning.pytorch.plugins.io import TorchCheckpointIO
else:
    # Two packages hold the same code. Lightning finds hooks by name, whatever the class.
    _NAME = "pytorch_lightning" if "pytorch_lightning" in sys.modules else "lightning.pytorch"
    Callback = importlib.import_module(_NAME).Callback
    TorchCheckpointIO = importlib.import_module(f"{_NAME}.plugins.io").TorchCheckpointIO
    BatchSizeFinder = importlib.import_module(f"{_NAME}.callbacks").BatchSizeFinder
    LearningRateFinder = importlib.import_module(f"{_NAME}.callbacks").LearningRateFinder


class OrchestratorCallback(Callback):
    """Adds stops, a heartbeat, metrics, snapshots, checkpoints and resume to ``Trainer.fit``."""

    def __init__(self, run_dir: str | Path | None = None) -> None:
        """``run_dir`` is the run's directory without a supervisor; the default is runs/<script>."""
        self._run_dir = run_dir
        self._session: FitSession | None = None

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Join or open the run, and let the Trainer restore its newest state.

        Ends the process with a message if the Trainer cannot be made resumable.
        """
        if stage != "fit" or _is_for_tuner(trainer):
            return
        # If an epoch's start is repeated, hooks of callbacks before this one would run twice.
        trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]
        with refusing():
            if (size := max(trainer.world_size, World.of(os.environ).size)) != 1:
                raise ConfigError(
                    f"cannot train Lightning with {size} processes yet: use Trainer(devices=1), "
                    "without --nproc-per-node"
                )
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
        session = FitSession(trainer, self._run_dir)
        session.__enter__()
        self._session = session

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Begin the loop, now that everything is restored."""
        if self._session is not None:
            self._session.begin()

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """End the epoch before, which is complete now, at a safe point, and begin the next one."""
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
        """Keep the loss of this batch for the metrics of the step."""
        if self._session is not None and isinstance(outputs, Mapping) and "loss" in outputs:
            self._session.loss = outputs["loss"]

    def on_validation_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", *batch: Any, **more: Any
    ) -> None:
        """Show that the validation makes progress."""
        if self._session is not None and not trainer.sanity_checking:
            self._session.poll()

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """End the last epoch."""
        if self._session is not None:
            self._session.end_epoch()

    def on_fit_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """End the run: training is complete."""
        self._leave(None)

    def on_exception(
        self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException
    ) -> None:
        """End the run: training was stopped or has failed."""
        self._leave(exception)

    def _leave(self, error: BaseException | None) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            trace = error.__traceback__ if error else None
            session.__exit__(type(error) if error else None, error, trace)


def _is_for_tuner(trainer: "Trainer") -> bool:
    """Return whether this ``fit`` only searches for a value, and undoes its training afterwards.

    Ends the process with a message if a search is part of a real training.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    finders = [each for each in callbacks if isinstance(each, BatchSizeFinder | LearningRateFinder)]
    if not finders or all(finder._early_exit for finder in finders):
        return bool(finders)
    with refusing():
        name = type(finders[0]).__name__
        raise ConfigError(
            f"cannot make the training resumable with {name} among its callbacks, because that "
            "trains and undoes it inside the training: use Tuner before trainer.fit()"
        )


class OrchestratorCheckpointIO(TorchCheckpointIO):
    """Writes each file of Lightning's atomically and durably, so that a power loss cannot tear it.

    It also loads a ``state.pt`` of this package, as ``ckpt_path`` of validate, test and predict.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a local file atomically and durably; write a URL as Lightning does."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_durably(checkpoint, Path(path), replace=True)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Return Lightning's checkpoint from a file of its own, or from a ``state.pt``."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *arguments, **options)
        return from_plain(checkpoint[KEY]) if KEY in checkpoint else checkpoint
