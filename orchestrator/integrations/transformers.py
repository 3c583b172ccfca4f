"""Makes the training of a Hugging Face Trainer a run: ``callbacks=[OrchestratorCallback()]``.

Importing this module wraps ``Trainer.train``, for trainers that have the callback: what to resume
from is an argument of it, and is loaded before any callback is asked.
"""

import functools
import os
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

from orchestrator.checkpoint.external_files import files_below
from orchestrator.errors import ConfigError
from orchestrator.ipc.control_page import Phase
from orchestrator.system.json_input import parse_object
from orchestrator.training.exits import refusing, say
from orchestrator.training.framework_run import FrameworkRun

FRAMEWORK = "transformers"
STATE_FILE = "trainer_state.json"


class OrchestratorCallback(TrainerCallback):
    """Makes a Trainer's training a run: resumed, published, watched, stopped at a step's end."""

    def __init__(self, run_dir: str | Path | None = None) -> None:
        """``run_dir`` is where the run lives when no supervisor says it: runs/<script> else."""
        self.run_dir = run_dir


class _Loop(TrainerCallback):
    """What the Trainer tells a run, and is asked by it, during one call of ``train``."""

    def __init__(self, trainer: Trainer, run: FrameworkRun) -> None:
        self._trainer: Any = trainer
        self._run = run
        self._epoch_ends = self._save_awaits_epoch_end = False
        self._ended_early_of: int | None = None
        self._is_over = False

    def __enter__(self) -> Self:
        """Be the last callback, so that what others ask for is known."""
        self._trainer.add_callback(self)
        self._trainer._load_callback_state = self._restore_callbacks
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave the Trainer as it was."""
        self._trainer.remove_callback(self)
        for name in ("_load_callback_state", "_run_epoch"):
            vars(self._trainer).pop(name, None)

    def _restore_callbacks(self) -> None:
        """The Trainer has read its state; it restores its callbacks' only where asked to.

        They then are new ones with the settings they had. Ours stay, with the script's settings.
        """
        trainer, states = self._trainer, self._trainer.state.stateful_callbacks
        callbacks = trainer.callback_handler.callbacks
        if trainer.args.restore_callback_states_from_checkpoint or self._run.resume_from is None:
            type(trainer)._load_callback_state(trainer)
            callbacks.append(callbacks.pop(callbacks.index(self)))  # the new ones came behind it
        else:
            for name in {type(each).__name__ for each in callbacks}:
                _restore([each for each in callbacks if type(each).__name__ == name], states)
        control = states.get(TrainerControl.__name__, {}).get("args", {})
        if control.get("should_training_stop"):
            self._ended_early_of = trainer.state.max_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The state is loaded, if there was one."""
        doubts = []
        if args.ignore_data_skip:
            doubts.append("the epoch's data begins anew (ignore_data_skip)")
        if args.dataloader_num_workers and args.dataloader_persistent_workers:
            doubts.append("new loader workers drew a seed that persistent ones do not draw")
        if not has_length(self._trainer.train_dataset):
            doubts.append("data without a length goes on where it was in its first pass only")
        self._run.begin(state.global_step, int(state.epoch or 0), doubts)
        self._is_over = self._run.resume_from is not None and (
            state.global_step >= state.max_steps or self._ended_early_of == state.max_steps
        )
        if self._is_over:
            # In mid-epoch the Trainer would do one more step before it sees that.
            self._trainer._run_epoch = lambda **_: None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """No epoch of a training that was over when its last step was saved."""
        control.should_training_stop = control.should_training_stop or self._is_over

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Gradients are accumulated: no place to save, but it lives."""
        self._run.alive(Phase.TRAIN)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A safe point; the Trainer saves next if we say so."""
        self._run.step(state.global_step, int(state.epoch or 0))
        self._epoch_ends = state.epoch == int(state.epoch or 0)
        self._save_awaits_epoch_end = self._epoch_ends and control.should_save
        if self._epoch_ends:
            # What a Trainer does at an epoch's end, at once after this, such as an evaluation that
            # draws from the random streams, it does not do after a resume.
            control.should_save = False
        else:
            self._ask_for_save(control, wanted=self._run.save_wanted)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The last place at which the Trainer saves by itself, after an evaluation if there is one.

        Where no length told that an epoch ends, what it has just saved is saved anew after that.
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
        """An evaluation in the midst of training does not hold up a stop.

        It draws from the random streams as it begins, so that a stop lets it begin all the same.
        """
        self._run.alive(Phase.EVALUATE)
        if self._run.stop_wanted:
            self._run.doubt(f"the evaluation at step {state.global_step} was cut off by a stop")
            _separate(self._directory)
            self._trainer._save_checkpoint(self._trainer.model, None)
            self._publish(control)
            self._run.stop()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The evaluation is over; a save may follow, the last one if it has ended the training."""
        is_last = control.should_training_stop and not self._run.is_saved
        self._ask_for_save(control, wanted=is_last and not self._epoch_ends)
        self._run.alive(Phase.SAVE if control.should_save else Phase.TRAIN)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The Trainer has saved: publish it, and stop if that is wanted."""
        self._publish(control)
        if self._run.stop_wanted and not self._epoch_ends:
            self._run.stop()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Numbers for those who watch, and for the manifest."""
        # The Trainer's epoch is a fraction; ours counts the completed ones.
        self._run.note({k: v for k, v in (given.get("logs") or {}).items() if k != "epoch"})

    def _ask_for_save(self, control: TrainerControl, *, wanted: bool) -> None:
        control.should_save = control.should_save or wanted
        if control.should_save:
            _separate(self._directory)
            if not control.should_evaluate:
                self._run.alive(Phase.SAVE)

    def _publish(self, control: TrainerControl) -> None:
        self._run.publish(
            self._directory,
            self._trainer.model,
            # Whether the best is saved is decided after all callbacks: too late to separate.
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
    """``Trainer.train`` of a trainer that has the callback.

    What the script wants to resume from counts as long as the run has no checkpoint.
    """
    with refusing():
        _check(trainer.args, trial)
    _leave_out_jit(trainer)
    with FrameworkRun(FRAMEWORK, transformers.__version__, callback.run_dir) as run:
        start = run.resume_from or _start_from(resume_from_checkpoint, trainer)
        with _Loop(trainer, run):
            return _train_alone(
                trainer, str(start) if start else None, trial, ignore_keys_for_eval, **options
            )


def _check(args: TrainingArguments, trial: Any) -> None:
    if args.save_only_model:
        raise ConfigError(
            "cannot make the training resumable: TrainingArguments(save_only_model=True) leaves "
            "the optimizer out of every checkpoint; take it away"
        )
    if trial is not None:
        raise ConfigError(
            "cannot search for hyperparameters within a run, whose checkpoints are of one "
            "training: take OrchestratorCallback away, or start one run per trial"
        )


def _leave_out_jit(trainer: Trainer) -> None:
    """Take away the Trainer's own SIGTERM handling, which saves between two steps."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "JITCheckpointCallback":
            trainer.remove_callback(callback)
            # That is where it gives the former handler back.
            callback.on_train_end(trainer.args, trainer.state, trainer.control)
            say("enable_jit_checkpoint is left out: a stop is saved at the end of a step anyway")


def _start_from(asked: Any, trainer: Trainer) -> Path | None:
    """What a run without checkpoints starts from, if the script asks for that."""
    output = Path(str(trainer.args.output_dir)).resolve()
    if not asked:
        return None
    if asked is not True and not _is_cut_off(Path(asked).resolve(), output):
        return Path(asked)
    # In its own output, get_last_checkpoint() may have taken one that was cut off by a kill.
    steps = {p: _step_of(p) for p in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    newest = max(filter(steps.get, steps), key=lambda path: steps[path] or 0, default=None)
    if partial := sorted(path.name for path, step in steps.items() if step is None):
        say(f"{', '.join(partial)} in {output} was not written to its end and is passed over")
    return newest


def _is_cut_off(directory: Path, output: Path) -> bool:
    """Whether the Trainer did not write this one of its ``output`` to its end."""
    is_trainers = directory.name.startswith(PREFIX_CHECKPOINT_DIR) and directory.parent == output
    return is_trainers and directory.is_dir() and _step_of(directory) is None


def _step_of(directory: Path) -> int | None:
    """The step of a directory that the Trainer has written to its end, else None."""
    try:
        # Written last, and not atomically.
        step = parse_object((directory / STATE_FILE).read_bytes())["global_step"]
    except (OSError, ValueError, KeyError):
        return None
    return step if directory.name == f"{PREFIX_CHECKPOINT_DIR}-{step}" else None


def _restore(callbacks: list[TrainerCallback], states: dict[str, Any]) -> None:
    """Give callbacks of one class what they had exported at the last save."""
    kept = states.get(type(callbacks[0]).__name__, [])
    # Of several callbacks the Trainer appends the states to a list, at each save anew.
    kept = kept[-len(callbacks) :] if isinstance(kept, list) else [kept]
    for callback, state in zip(callbacks, kept, strict=False):
        if isinstance(callback, ExportableState):
            for name, value in state.get("attributes", {}).items():
                setattr(callback, name, value)


def _separate(directory: Path) -> None:
    """Take away what the store has links to, before the Trainer writes into these files again."""
    for name in files_below(directory):
        if os.lstat(directory / name).st_nlink > 1:
            (directory / name).unlink()


_train_alone = Trainer.train


@functools.wraps(_train_alone)
def _train_or_run(trainer: Trainer, *arguments: Any, **options: Any) -> Any:
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, OrchestratorCallback):
            return _train(callback, trainer, *arguments, **options)
    return _train_alone(trainer, *arguments, **options)


Trainer.train = _train_or_run  # type: ignore[assignment, method-assign]
