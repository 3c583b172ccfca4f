"""A session whose loop is Lightning's; ``lightning.py`` describes the design."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from orchestrator.errors import ConfigError, UnstorableError
from orchestrator.integrations.lightning_paths import with_checked_paths
from orchestrator.training import Session
from orchestrator.training.exits import refusing
from orchestrator.training.state.composite import Composite
from orchestrator.training.state.plain_values import to_plain
from orchestrator.training.state.progress import RESERVED, SUFFIX

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

KEY = f"trainer{SUFFIX}"
_HYPER_PARAMETERS = (
    *("hparams_name", "hyper_parameters", "hparams_type"),
    *("datamodule_hparams_name", "datamodule_hyper_parameters", "datamodule_hparams_type"),
)


class FitSession(Session):
    """A session whose loop is that of ``Trainer.fit``."""

    def __init__(self, trainer: "Trainer", run_dir: str | Path | None) -> None:
        self.loss: Any = None
        self._trainer = trainer
        self._lightning = _LightningState(trainer)
        super().__init__(run_dir=run_dir, trainer=self._lightning)
        self._in_epoch = False
        self._has_batch = False
        self._has_leader = False
        self._length: int | None = None
        self._shown: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Open the run, and replace what Lightning does with batches and signals."""
        super().__enter__()
        trainer, strategy = self._trainer, self._trainer.strategy
        process_dataloader = strategy.process_dataloader

        def process(dataloader: Any) -> Any:
            dataloader = process_dataloader(dataloader)
            return _Batches(self, dataloader) if trainer.training else dataloader

        strategy.process_dataloader = process  # type: ignore[method-assign]
        # Lightning's handlers would end the training before the safe point, or requeue a SLURM job.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave the run, and give the Trainer its own methods back."""
        for changed in (
            vars(self._trainer.strategy),
            vars(self._trainer._signal_connector),
            vars(self._trainer._checkpoint_connector),
        ):
            for name in ("process_dataloader", "register_signal_handlers", "resume_start"):
                changed.pop(name, None)
        super().__exit__(*error)

    def begin(self) -> None:
        """Begin the loop, after Lightning has restored its state."""
        if type(self._trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher":
            with refusing():
                raise ConfigError(
                    "cannot train with training_step(dataloader_iter) yet, because that fetches "
                    "batches inside a step: take the batch as the argument"
                )
        self._announce_totals()
        if self._lightning.begin(self._trainer.fit_loop):
            self._open_epoch()

    def _announce_totals(self) -> None:
        trainer, steps = self._trainer, None
        # Lightning counts the steps of several optimizers, and the session one for each batch.
        if trainer.lightning_module.automatic_optimization or trainer.max_steps == -1:
            steps = trainer.estimated_stepping_batches
        self._open_run.totals.announce(steps=steps, epochs=trainer.max_epochs)

    def begin_epoch(self) -> None:
        """End the epoch before at a safe point, if there is one, and begin the next."""
        if self._in_epoch:
            self.end_epoch()
            self._open_run.safe_points.reach()
        self._open_epoch()

    def _open_epoch(self) -> None:
        self._begin_epoch()
        self._in_epoch, self._has_leader = True, False

    def end_epoch(self) -> None:
        """End the epoch, after counting the step of its last batch."""
        if self._has_batch:
            self._has_batch = False
            self._end_step(**self._metrics_of_step())
        if self._in_epoch:
            self._in_epoch = False
            self._end_epoch()

    def check_length(self, length: int) -> None:
        """Check that all loaders have the same length; a shorter one would start over in between.

        Raises ConfigError.
        """
        if self._length not in (None, length):
            raise ConfigError(
                f"cannot train on loaders of different lengths yet: one has {self._length} "
                f"batches, another {length}; give them the same length"
            )
        self._length = length

    def iterate(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of an epoch; Lightning asks for one when it has finished the last.

        With several loaders, which Lightning asks in turn, a step ends at the first loader.
        """
        if self._has_leader:
            yield from self.batches(loader)
            return
        self._has_leader = True
        self._lightning.arrive(self._trainer.fit_loop)
        for batch in self.batches(loader):
            self._has_batch = True
            yield batch
            if self._trainer.fit_loop._should_accumulate():
                # The step is not complete: nothing new is saved here.
                self._open_run.safe_points.reach()
            else:
                self._has_batch = False
                self.step(**self._metrics_of_step())

    def _metrics_of_step(self) -> dict[str, Any]:
        """Return the loss, and the metrics that were logged since the step before."""
        logged = dict(self._trainer.callback_metrics)
        fresh = {k: value for k, value in logged.items() if value is not self._shown.get(k)}
        self._shown = logged
        loss, self.loss = self.loss, None
        metrics = ({} if loss is None else {"loss": loss}) | fresh
        return {
            name: value
            for name, value in metrics.items()
            if name not in RESERVED and not name.endswith(SUFFIX)
        }


class _LightningState(Composite):
    """Lightning's own checkpoint, as the state of a registered object."""

    def __init__(self, trainer: "Trainer") -> None:
        self._trainer = trainer
        self._restored: dict[str, Any] | None = None
        self._loops: dict[str, Any] | None = None
        self._has_begun = False

    def parts(self) -> list[Any]:
        """Return the objects whose tensors the session checks for health and copies."""
        return [self._trainer.lightning_module, *self._trainer.optimizers]

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning would write into a checkpoint file."""
        if self._restored is not None and not self._has_begun:
            return self._restored  # the Trainer has not loaded it yet
        state = self._trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        # Between two epochs, the next one must count as not begun: otherwise Lightning would finish
        # it instead of beginning it.
        progress = state["loops"]["fit_loop"]["epoch_progress"]
        for tracker in progress.values():
            tracker["ready"] = tracker["started"]
        for key in _HYPER_PARAMETERS:
            if key in state and not _is_storable(state[key]):
                del state[key]  # resuming does not need them, and they may hold any object
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the state to the Trainer, which restores it at its own time and in its own order.

        ``arrive`` restores the counters again, which the Trainer changes after that.
        """
        if self._has_begun:
            return
        self._restored, self._loops = state, state["loops"]["fit_loop"]
        trainer, connector = self._trainer, self._trainer._checkpoint_connector

        def resume_start(*_: Any, **__: Any) -> None:
            # Only now each callback knows its directory.
            callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
            checked = with_checked_paths(state.get("callbacks"), callbacks)
            connector._loaded_checkpoint = state | {"callbacks": checked}

        connector.resume_start = resume_start  # type: ignore[method-assign]

    def begin(self, fit_loop: Any) -> bool:
        """Note that the Trainer has loaded its state; return whether that is inside an epoch."""
        self._has_begun, self._restored = True, None
        if self._loops is None:
            return False
        progress = self._loops["epoch_progress"]["current"]
        fit_loop.load_state_dict(self._loops)
        if progress["started"] == progress["processed"]:
            self._loops = None
            _forget_restart(fit_loop)
            return False
        # The loop must not skip the hooks after this batch, nor repeat those before it.
        fit_loop.update_restart_stage()
        fit_loop.epoch_loop.reset_restart_stage()
        return True

    def arrive(self, fit_loop: Any) -> None:
        """Undo what Lightning has counted since the resume, when it asks for the first batch."""
        if self._loops is not None:
            fit_loop.load_state_dict(self._loops)
            self._loops = None
            _forget_restart(fit_loop)


class _Batches:
    """Stands in for a training DataLoader of Lightning's; the session provides its batches."""

    def __init__(self, session: FitSession, loader: Any) -> None:
        self._session = session
        self._loader = loader
        with refusing():
            try:
                self._session.check_length(len(loader))
            except TypeError:
                raise ConfigError(
                    "cannot train on data without a length yet, because Lightning prefetches it: "
                    "give the IterableDataset a __len__()"
                ) from None

    def __iter__(self) -> Iterator[Any]:
        return self._session.iterate(self._loader)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _forget_restart(loop: Any) -> None:
    """Make a loop, and the loops inside it, behave as if they had not been restarted."""
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    loop.reset_restart_stage()
    for inner in vars(loop).values():
        if hasattr(inner, "reset_restart_stage"):
            _forget_restart(inner)


def _is_storable(value: Any) -> bool:
    try:
        to_plain(value, "hyper_parameters")
    except UnstorableError:
        return False
    return True
