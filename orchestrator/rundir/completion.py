"""A completed run is trained further only with the arguments that it had, or when asked to."""

from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.start import Start, shown
from orchestrator.system.recorded_command import recorded

CONTINUE_VARIABLE = "ORCHESTRATOR_CONTINUE"


def has_other_arguments(done: dict[str, Any], start: Start) -> bool:
    """Return whether the run in done.json was completed with other arguments than this start's."""
    earlier = Start.from_json(done.get("start"))
    if earlier is None:
        return bool(done.get("command") != recorded(start.command))
    return any(line.startswith("arguments") for line in start.differences_from(earlier))


def words_of(command: Any) -> list[str]:
    """Return the words of the command in done.json, which may be damaged."""
    return list(map(str, command)) if isinstance(command, list) else []


def refuse_other_arguments(run: RunDir, start: Start) -> None:
    """Raise ConfigError where the run is complete, and was trained with other arguments."""
    done = run.read_done()
    if done is None or not has_other_arguments(done, start):
        return
    earlier = Start.from_json(done.get("start"))
    then = words_of(done.get("command")) if earlier is None else earlier.arguments
    now = start.command if earlier is None else start.arguments
    raise ConfigError(
        f"cannot train with other arguments in {run.root}: the run there is complete (step "
        f"{done.get('step')})\n"
        f"  arguments then: {shown(then)}\n"
        f"  arguments now:  {shown(recorded(now))}\n"
        "for another experiment name another directory with --run-dir, such as --run-dir "
        "'runs/{name}-{args}', which differs with the arguments; to train this run further with "
        f"the new arguments, add --continue (without a supervisor: {CONTINUE_VARIABLE}=on)"
    )
