"""The table that `orchestrator status` prints for people."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli.table_cells import metrics_text, state_style
from orchestrator.errors import AGAIN_WITH_NEW_LIMITS
from orchestrator.supervisor.recovery.failure_kinds import ADVICE, Kind
from orchestrator.supervisor.report import FIX_AND_RUN_AGAIN
from orchestrator.system.text import shown_parts
from orchestrator.system.units import duration_text, size_text
from orchestrator.telemetry.goodput_text import goodput_text
from orchestrator.telemetry.progress import progress_text
from orchestrator.telemetry.stop_text import AGAIN_FROM_START, AGAIN_TO_RESUME, HOW_TO_SAVE

NO_SESSION_YET = "none yet: nothing is saved before the script opens one"


def status_table(status: dict[str, Any]) -> RenderableType:
    """Return the status of one run, one fact a line; absent facts are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")  # a path is not cut off on a narrow terminal
    status = shown_parts(status)
    state = status["state"]
    rows: list[tuple[str, str | Text | None]] = [
        ("run", f"{status['run_id']}  {status['run_dir']}"),
        ("state", Text(_state(status), style=state_style(state))),
        *_failure(status["failure"]),
        ("next", _next(status)),
        ("session", NO_SESSION_YET if state == "starting" else None),
        ("attempt", _attempt(status)),
        ("progress", progress_text(status["progress"])),
        ("goodput", goodput_text(status["goodput"])),
        ("phase", _phase(status)),
        ("metrics", metrics_text(status["metrics"])),
        ("checkpoint", _checkpoint(status)),
        ("snapshot", _snapshot(status["newest_snapshot"], status["snapshots"])),
        ("problem", Text(status["problem"] or "", style="red")),
        ("at risk", _at_risk(status)),
        ("processes", _processes(status)),
        ("spare", _spare(status["spare"])),
        *_ranks(status.get("ranks")),
    ]
    for name, value in rows:
        if value:
            # A plain string would be read as markup, and a directory may be called runs/[v2].
            table.add_row(
                Text(name, style="bold"), Text(value) if isinstance(value, str) else value
            )
    return Group(table)


def _state(status: dict[str, Any]) -> str:
    failure = status["failure"]
    if failure is None or failure["status"] is None:
        return str(status["state"])
    return f"{status['state']}: gave up with exit status {failure['status']}"


def _next(status: dict[str, Any]) -> str | None:
    """Return what a person does about a run that has ended before its training."""
    match status["state"]:
        case "stopped" | "interrupted":
            return AGAIN_FROM_START if status["newest_checkpoint"] is None else AGAIN_TO_RESUME
        case "failed":
            failure = status["failure"] or {"kind": None, "attempt": 0}
            if failure["kind"] == Kind.STOPPED:
                return AGAIN_WITH_NEW_LIMITS
            # The reason why no attempt could begin says what to do.
            return None if failure["attempt"] is None else FIX_AND_RUN_AGAIN
    return None


def _failure(failure: dict[str, Any] | None) -> list[tuple[str, str | None]]:
    """Return what ended the run, where, how often, and which file to read."""
    if failure is None:
        return []
    cause, last_line, where = failure["cause"], failure["last_line"], None
    if failure["kind"] == Kind.STOPPED:
        cause = None  # nothing failed: a limit of the run was reached
    if failure["attempt"] is not None:
        where = f"attempt {failure['attempt']}, step {failure['step']}"
        if failure["times"] > 1:
            where += f"; {failure['times']} attempts ended like this"
    return [
        ("why", "; ".join(filter(None, (cause, failure["reason"])))),
        ("where", where),
        ("output", failure["output"]),
        ("last line", None if last_line and last_line in (cause or "") else last_line),
        ("advice", ADVICE.get(failure["kind"])),
    ]


def _attempt(status: dict[str, Any]) -> str:
    if status["attempt"] is None:
        return ""
    restarts = status["restarts"]
    return (
        f"{status['attempt']}  ({restarts} restart{'' if restarts == 1 else 's'} after a failure)"
    )


def _phase(status: dict[str, Any]) -> str:
    if status["silent_seconds"] is None:
        return ""
    parts = [] if status["phase"] is None else [status["phase"]]
    parts.append(f"last progress {duration_text(status['silent_seconds'])} ago")
    if (timeout := status["hang_budget_seconds"]) is not None:
        parts.append(f"restarted as hung after {duration_text(timeout)}")
    return ", ".join(parts)


def _checkpoint(status: dict[str, Any]) -> str:
    if (newest := status["newest_checkpoint"]) is None:
        return f"none: {HOW_TO_SAVE}" if status["state"] == "completed" else "none yet"
    return f"step {newest['step']}, {duration_text(newest['age_seconds'])} old  {newest['path']}"


def _snapshot(newest: dict[str, Any] | None, facts: dict[str, Any] | None) -> str:
    if newest is None:
        return ""
    parts = [f"step {newest['step']}, {duration_text(newest['age_seconds'])} old, in memory"]
    if facts and facts["interval_seconds"] and facts["stall_seconds"] is not None:
        stall = facts["stall_seconds"] * 1000
        pace = f"one every {duration_text(facts['interval_seconds'])}"
        if facts["failure_seconds"]:
            pace += f" (a failure every {duration_text(facts['failure_seconds'])} so far)"
        parts.append(f"{pace}, taking {stall:.3g} ms")
    if facts and facts["write_seconds"] and facts["bytes"] is not None:
        written = f"{size_text(facts['bytes'])} in {duration_text(facts['write_seconds'])}"
        parts.append(f"written to disk: {written}")
    return "; ".join(parts)


def _at_risk(status: dict[str, Any]) -> str:
    if (seconds := status["lose_at_most_seconds"]) is None:
        return ""
    after = status["machine_loses_at_most_seconds"]
    machine = "all of it" if after is None else f"at most {duration_text(after)}"
    return (
        f"if the trainer is killed: at most {duration_text(seconds)}; "
        f"if the machine goes down: {machine}"
    )


def _processes(status: dict[str, Any]) -> str:
    names = ("supervisor", "trainer", "spare")
    return "  ".join(f"{n} {status[f'{n}_pid']}" for n in names if status[f"{n}_pid"])


def _spare(spare: dict[str, Any] | None) -> str:
    if spare is None:
        return ""
    if spare["reason"]:
        return f"none: {spare['reason']}"
    memory = f", {size_text(spare['bytes'])} of memory" if spare["bytes"] else ""
    return f"{spare['state']}{memory}"


def _ranks(ranks: list[dict[str, Any]] | None) -> list[tuple[str, str]]:
    return [
        (f"rank {each['rank']}", f"step {each['step']}, {each['state']}, process {each['pid']}")
        for each in ranks or ()
    ]
