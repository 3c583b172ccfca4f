"""Launches the command for an attempt: from the spare if there is one, else cold."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.adopt.resume_argument import ResumeArgument
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.spare.pool import SparePool
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.rank import Rank
from orchestrator.supervisor.attempt.trainer_process import TrainerProcess, start_cold
from orchestrator.supervisor.attempt.unrelated_processes import UnrelatedProcesses


@dataclass(frozen=True)
class LaunchSpec:
    """How the trainers of a run are launched; the same for all attempts."""

    command: list[str]
    resume_argument: ResumeArgument
    """How a script that saves for itself is told on its command line what to resume from."""
    environment: Mapping[str, str]
    lock_descriptor: int
    """The run lock, which every process of the training inherits."""
    inherited: tuple[int, ...]
    """Further descriptors that the command inherits: the invitation, and what was given."""
    stop_signal: signal.Signals
    unrelated: UnrelatedProcesses


async def launch(spec: LaunchSpec, attempt: Attempt, spares: SparePool) -> None:
    """Start the command, once for each rank.

    Raises OSError, and ConfigError where the command cannot be run.
    """
    started: list[TrainerProcess] = []
    try:
        for rank in attempt.ranks:
            started.append(await _launch(spec, attempt, rank, spares))
            rank.begin(started[-1])
    except BaseException:
        for process in started:
            process.kill_tree()
        raise


async def _launch(
    spec: LaunchSpec, attempt: Attempt, rank: Rank, spares: SparePool
) -> TrainerProcess:
    variables, output = attempt.variables(rank), rank.output
    handle = await spares.make_trainer(variables, output.write_descriptor, spec.lock_descriptor)
    from_spare = handle is not None
    if handle is None:
        handle = start_cold(
            [*spec.command, *_resume_words(spec.resume_argument, attempt.resume_checkpoint)],
            {**spec.environment, **variables},
            output,
            (spec.lock_descriptor, *spec.inherited),
        )
    return TrainerProcess(handle, output, spec.unrelated, spec.stop_signal, from_spare)


def _resume_words(argument: ResumeArgument, checkpoint: Checkpoint | None) -> list[str]:
    if checkpoint is None or not argument.template:
        return []
    adopted = checkpoint.manifest.adopted
    step = checkpoint.manifest.step if adopted and adopted.numbered else None
    if adopted is not None and adopted.number is not None:
        step = adopted.number
    return argument.words(checkpoint.script_paths, step)
