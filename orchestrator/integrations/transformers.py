"""The callback that makes a Hugging Face Trainer resumable: ``callbacks=[OrchestratorCallback()]``.

Importing this module wraps ``Trainer.train`` for trainers that have the callback: the checkpoint to
resume from is an argument of that method, and is loaded before any callback is called.
"""

import functools
import os
import sys
from pathlib import Path
from typing import Any, Self

import transformers
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, has_length

from orchestrator.breakpoints.install import install
from orchestrator.breakpoints.table import TRANSFORMERS
from orchestrator.breakpoints.trial_files import trial_directory
from orchestrator.checkpoint.external_files import unlink_shared_files
from orchestrator.errors import ConfigError
from orchestrator.integrations.transformers_state import check_fields, check_state
from orchestrator.ipc.control_page import Phase
from orchestrator.system.json_input import parse_object
from orchestrator.training.exits import print_message, refusing
from orchestrator.training.framework_run import FrameworkRun

FRAMEWORK = "transformers"
STATE_FILE = "trainer_state.json"


class OrchestratorCallback(TrainerCallback):
    """Makes a Trainer resume, publish its checkpoints, show progress and stop after a step."""

    def __init__(self, run_dir: str | Path | None = None) -> None:
        """``run_dir`` is the run's directory without a supervisor; the default is runs/<script>."""
        self.run_dir = run_dir


class _RunCallback(TrainerCallback):
    """Connects the Trainer with the run during one call of ``train``."""

    def __init__(self, trainer: Trainer, run: FrameworkRun) -> None:
        self._trainer: Any = trainer
        self._run = run
        self._epoch_ends = self._save_awaits_epoch_end = False
        self._ended_early_of: int | None = None
        self._is_over = False
        self._refused: Path | None = None

    def __enter__(self) -> Self:
        """Become the last callback, which sees what the others ask for."""
        self._trainer.add_callback(self)
        self._trainer._load_callback_state = self._restore_callbacks
        return self

    def __exit__(self, *error: Any) -> None:
        """Give the Trainer its own callbacks and methods back."""
        self._trainer.remove_callback(self)
        for name in ("_load_callback_state", "_run_epoch"):
            vars(self._trainer).pop(name, None)

    def _restore_callbacks(self) -> None:
        """Restore the state of the script's callbacks, after the Trainer has read its own state.

        The Trainer itself does so only if it is asked to, and then replaces the callbacks by new
        ones with their old settings. Here they stay, with the script's settings.
        """
        trainer, states = self._trainer, self._trainer.state.stateful_callbacks
        callbacks = trainer.callback_handler.callbacks
        check_state(trainer.state, [*callbacks, trainer.control], trainer.args.output_dir)
        if trainer.args.restore_callback_states_from_checkpoint or self._run.resume_from is None:
            type(trainer)._load_callback_state(trainer)
            callbacks.append(callbacks.pop(callbacks.index(self)))  # the new ones are behind it
        else:
            for name in {type(each).__name__ for each in callbacks}:
                _restore([each for each in callbacks if type(each).__name__ == name], states)
        control = states.get(TrainerControl.__name__, {}).get("args", {})
        if control.get("should_training_stop"):
            self._ended_early_of = trainer.state.max_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin the run, after the Trainer has loaded its state, and say what is not exact."""
        has_epochs = has_length(self._trainer.train_dataset)
        doubts = []
        if args.ignore_data_skip:
            doubts.append("the epoch's data starts over (ignore_data_skip)")
        if args.dataloader_num_workers and args.dataloader_persistent_workers:
            doubts.append("new loader workers drew a seed that persistent ones do not draw")
        if not has_epochs:
            doubts.append("data without a length resumes at its position in the first pass only")
        self._run.begin(
            state.global_step,
            int(state.epoch or 0),
            doubts,
            total_steps=state.max_steps,
            total_epochs=state.num_train_epochs if has_epochs else None,
        )
        self._is_over = self._run.resume_from is not None and (
            state.global_step >= state.max_steps or self._ended_early_of == state.max_steps
        )
        if self._is_over:
            # In the middle of an epoch, the Trainer would do one more step before it sees that.
            self._trainer._run_epoch = lambda **_: None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Do no epoch of a training that was over when its last step was saved."""
        control.should_training_stop = control.should_training_stop or self._is_over

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show progress while gradients accumulate; there is no safe point here."""
        self._run.beat(Phase.TRAIN)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count the step, and ask the Trainer to save next if a save is wanted."""
        self._run.step(state.global_step, int(state.epoch or 0))
        self._epoch_ends = state.epoch == int(state.epoch or 0)
        self._save_awaits_epoch_end = self._epoch_ends and control.should_save
        if self._epoch_ends:
            # At once after this, the Trainer does the work of an epoch's end, such as an evaluation
            # that draws from the random streams. After a resume from here it would leave that out.
            control.should_save = False
        else:
            self._ask_for_save(control, wanted=self._run.save_wanted)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for the save of the epoch's end, after an evaluation if there is one.

        If the data has no length, the epoch's end was not foreseen, and a checkpoint that was just
        saved is saved again after the evaluation.
        """
        self._epoch_ends = False
        if self._run.stop_wanted and self._run.is_saved and not control.should_evaluate:
            self._run.stop()
        is_due = control.should_evaluate if self._run.is_saved else control.should_training_stop
        wanted = is_due or self._save_awaits_epoch_end or self._run.save_wanted
        self._ask_for_save(control, wanted=wanted)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop inside an evaluation, if a stop is wanted.

        The evaluation has begun by then, because its beginning draws from the random streams.
        """
        self._run.beat(Phase.EVALUATE)
        if self._run.stop_wanted and self._makes_way():
            self._run.add_doubt(f"the evaluation at step {state.global_step} was cut off by a stop")
            self._trainer._save_checkpoint(self._trainer.model, None)
            self._publish(control)
            self._run.stop()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a save after the evaluation, if training ends with it."""
        is_last = control.should_training_stop and not self._run.is_saved
        self._ask_for_save(control, wanted=is_last and not self._epoch_ends)
        self._run.beat(Phase.SAVE if control.should_save else Phase.TRAIN)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Publish what the Trainer has saved, and stop if a stop is wanted."""
        self._publish(control)
        if self._run.stop_wanted and not self._epoch_ends:
            self._run.stop()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Record the logged numbers as metrics."""
        # The Trainer's epoch is a fraction; the run counts completed epochs.
        self._run.record({k: v for k, v in (given.get("logs") or {}).items() if k != "epoch"})

    def _ask_for_save(self, control: TrainerControl, *, wanted: bool) -> None:
        control.should_save = (control.should_save or wanted) and self._makes_way()
        if control.should_save and not control.should_evaluate:
            self._run.beat(Phase.SAVE)

    def _makes_way(self) -> bool:
        """Remove what the store links to from where the Trainer saves next.

        Return whether it may save there: not behind a link, nor in what is another user's.
        """
        try:
            unlink_shared_files(self._directory)
        except OSError as error:
            if self._refused != self._directory:
                self._refused = self._directory
                print_message(
                    f"the Trainer does not save in {self._directory}: {error.strerror}; remove "
                    "that, or name an output_dir in which no other user may write"
                )
            return False
        return True

    def _publish(self, control: TrainerControl) -> None:
        self._run.publish(
            self._directory,
            self._trainer.model,
            # The Trainer decides after all callbacks whether it saves the best: too late to unlink.
            link=self._trainer.args.save_strategy != SaveStrategy.BEST,
            final=control.should_training_stop,
        )

    @property
    def _directory(self) -> Path:
        step = self._trainer.state.global_step
        return Path(self._trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


# --- before training -----------------------------------------------------------------------------


def _train(
    callback: OrchestratorCallback,
    trainer: Trainer,
    resume_from_checkpoint: str | bool | None = None,
    trial: Any = None,
    ignore_keys_for_eval: list[str] | None = None,
    **options: Any,
) -> Any:
    """Train as ``Trainer.train`` does, for a trainer that has the callback.

    ``resume_from_checkpoint`` counts only as long as the run has no checkpoint of its own.
    """
    with refusing():
        _check(trainer.args, trial)
    if (directory := trial_directory()) is not None:
        # The runs of `orchestrator chaos` would find each other's checkpoints.
        trainer.args.output_dir = str(directory / "output")
    _remove_jit_checkpoint(trainer)
    with FrameworkRun.open(FRAMEWORK, transformers.__version__, callback.run_dir) as run:
        if run.resume_from is not None:
            with refusing():
                check_fields(run.resume_from / STATE_FILE)
        start = run.resume_from or _start_from(resume_from_checkpoint, trainer)
        with _RunCallback(trainer, run):
            return _original_train(
                trainer, str(start) if start else None, trial, ignore_keys_for_eval, **options
            )


def _check(args: TrainingArguments, trial: Any) -> None:
    if args.save_only_model:
        raise ConfigError(
            "cannot make the training resumable: TrainingArguments(save_only_model=True) leaves "
            "the optimizer out of every checkpoint; remove that argument"
        )
    if trial is not None:
        raise ConfigError(
            "cannot search for hyperparameters within a run, which holds the checkpoints of one "
            "training: remove OrchestratorCallback, or start one run per trial"
        )


def _remove_jit_checkpoint(trainer: Trainer) -> None:
    """Remove the Trainer's own SIGTERM handling, which saves between two steps."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "JITCheckpointCallback":
            trainer.remove_callback(callback)
            # This call restores the former signal handler.
            callback.on_train_end(trainer.args, trainer.state, trainer.control)
            print_message(
                "enable_jit_checkpoint is ignored: a stop saves at the end of a step anyway"
            )


def _start_from(asked: Any, trainer: Trainer) -> Path | None:
    """Return the checkpoint that the script wants a run without checkpoints to start from."""
    output = Path(str(trainer.args.output_dir)).resolve()
    if not asked:
        return None
    if asked is not True and not _is_incomplete(Path(asked).resolve(), output):
        return Path(asked)
    # get_last_checkpoint() may have chosen one that a kill left incomplete.
    steps = {p: _step_of(p) for p in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    newest = max(filter(steps.get, steps), key=lambda path: steps[path] or 0, default=None)
    if partial := sorted(path.name for path, step in steps.items() if step is None):
        print_message(f"{', '.join(partial)} in {output} is incomplete and not used")
    return newest


def _is_incomplete(directory: Path, output: Path) -> bool:
    """Return whether this is a checkpoint in ``output`` that the Trainer did not finish."""
    is_trainers = directory.name.startswith(PREFIX_CHECKPOINT_DIR) and directory.parent == output
    return is_trainers and os.path.isdir(directory) and _step_of(directory) is None


def _step_of(directory: Path) -> int | None:
    """Return the step of a complete checkpoint; None for an incomplete one."""
    try:
        # The Trainer writes this file last, and not atomically. It has a part for each logged step.
        state = (directory / STATE_FILE).read_bytes()
        step = parse_object(state, most_parts=sys.maxsize)["global_step"]
    except (OSError, ValueError, KeyError):
        return None
    return step if directory.name == f"{PREFIX_CHECKPOINT_DIR}-{step}" else None


def _restore(callbacks: list[TrainerCallback], states: dict[str, Any]) -> None:
    """Restore callbacks of one class from what they exported at the last save."""
    saved = states.get(type(callbacks[0]).__name__, [])
    # For several callbacks of a class, the Trainer appends their states to one list at each save.
    saved = saved[-len(callbacks) :] if isinstance(saved, list) else [saved]
    for callback, state in zip(callbacks, saved, strict=False):
        if isinstance(callback, ExportableState):
            for name, value in state.get("attributes", {}).items():
                setattr(callback, name, value)


_original_train = Trainer.train


@functools.wraps(_original_train)
def _train_or_run(trainer: Trainer, *arguments: Any, **options: Any) -> Any:
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, OrchestratorCallback):
            return _train(callback, trainer, *arguments, **options)
    return _original_train(trainer, *arguments, **options)


Trainer.train = _train_or_run  # type: ignore[assignment, method-assign]
install(TRANSFORMERS)
