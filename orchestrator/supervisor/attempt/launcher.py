"""Launches the command for an attempt: from the spare if there is one, else cold."""

import errno
import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.adopt.resume_argument import ResumeArgument
from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.errors import ConfigError
from orchestrator.spare.pool import SparePool
from orchestrator.supervisor.attempt.attempt import Attempt
from orchestrator.supervisor.attempt.output import Output
from orchestrator.supervisor.attempt.rank import Rank
from orchestrator.supervisor.attempt.trainer_process import LAST_OUTPUT_SECONDS, TrainerProcess
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
    """Start the command, once for each rank; where one does not start, end those that did.

    Raises OSError, and ConfigError where the command cannot be run.
    """
    started: list[TrainerProcess] = []
    try:
        for rank in attempt.ranks:
            started.append(await _launch(spec, attempt, rank, spares))
            rank.begin(started[-1])
    except BaseException:
        for process in started:
            process.kill_command()
        if started:
            await started[0].kill_remains()
        for process in started:
            await process.finish_output()
        raise


async def _launch(
    spec: LaunchSpec, attempt: Attempt, rank: Rank, spares: SparePool
) -> TrainerProcess:
    variables, output = attempt.variables(rank), rank.output
    handle = await spares.make_trainer(variables, output.write_descriptor, spec.lock_descriptor)
    from_spare = handle is not None
    if handle is None:
        handle = _start_cold(
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


def _start_cold(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: Output,
    inherited: Collection[int],
) -> subprocess.Popen[bytes]:
    """Start the command. Raises ConfigError when it cannot be run at all.

    Among the descriptors that are ``inherited`` is the run lock, so that the run stays locked until
    the last of its processes ends.
    """
    try:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdout=output.write_descriptor,
            stderr=output.write_descriptor,
            # A terminal's Ctrl-C does not reach another session: the supervisor asks for a save
            # instead. Ctrl-C would kill the loader workers, and the save with them.
            start_new_session=True,
            pass_fds=tuple(inherited),
        )
    except OSError as error:
        output.start()
        output.finish(LAST_OUTPUT_SECONDS)
        name = error.filename or command[0]
        raise ConfigError(f"cannot run {name}: {_why_not(error, name)}") from None


def _why_not(error: OSError, program: str) -> str:
    """Return why the system did not run a program, and what to write instead."""
    if error.errno == errno.ENOENT and os.path.exists(program):
        return "the interpreter that its first line names does not exist; correct that line"
    if error.errno == errno.ENOEXEC:
        return "it is a script without a first line such as #!/bin/sh; add one"
    return f"{error.strerror}; correct this and run the command again"
