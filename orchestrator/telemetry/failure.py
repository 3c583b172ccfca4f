"""Why a run gave up, as its journal tells it."""

from dataclasses import dataclass

from orchestrator.rundir.history import History
from orchestrator.rundir.paths import RunDir


@dataclass(frozen=True)
class Failure:
    """The ``failure`` object of `status --json`. Unknown values are None.

    ``status`` is the exit status of the run. ``cause`` says what ended the last attempt, ``kind``
    is its diagnosis (docs/explanation/restarts.md), and ``reason`` says why no restart followed.
    ``times`` counts the attempts that ended like this at this step. ``output`` is the file with
    everything that the attempt printed, and ``last_line`` is its last line.
    """

    status: int | None
    cause: str | None
    reason: str | None
    kind: str | None = None
    attempt: int | None = None
    step: int | None = None
    times: int | None = None
    output: str | None = None
    last_line: str | None = None


def failure_in(history: History, run: RunDir) -> Failure | None:
    """Return the failure that the last ``gave_up`` event of a run tells of, if there is one."""
    gave_up, last = history.last_give_up, history.last_exit
    if not gave_up:
        return None
    facts = {name: gave_up.get(name) for name in ("status", "cause", "reason")}
    number = gave_up.get("attempt")
    if not isinstance(number, int) or last.get("attempt") != number:
        return Failure(**facts)
    lines = last.get("last_lines") or [None]
    return Failure(
        **facts,
        kind=last.get("kind"),
        attempt=number,
        step=last.get("step"),
        times=history.times_ended_like(last),
        output=str(run.attempt(number).output_file),
        last_line=lines[-1],
    )
