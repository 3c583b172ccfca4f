"""The report of a look: what was seen, what --adopt can promise, and the command to use."""

import os
import shlex
from collections.abc import Iterator, Sequence

from orchestrator.adopt.seal_policy import LONG_QUIET_SECONDS
from orchestrator.checkpoint.retention import DEFAULT_KEEP
from orchestrator.first_look.look import Look
from orchestrator.first_look.proposal import Findings
from orchestrator.first_look.saves import SaveGroup
from orchestrator.first_look.weights import Likeness
from orchestrator.system.units import duration_text, size_text

MOST_OVERWRITTEN = 3


def report(look: Look, findings: Findings | None, command: Sequence[str]) -> str:
    """Return the whole report."""
    lines = [_watched(look)]
    lines += _notes(look)
    if findings is None:
        lines += ["", _no_saves(look, command)]
        return "\n".join(lines)
    lines += ["", *_found(findings), "", *_promises(look, findings), ""]
    lines += ["The command to use, from the first start to the last:", ""]
    lines += [f"    {run_command(findings, command)}"]
    if findings.resume_arg is not None:
        lines += ["", _goes_on(findings)]
    return "\n".join(lines)


def run_command(findings: Findings, command: Sequence[str]) -> str:
    """Return the command line that adopts the script."""
    adopted = [word for text in findings.adopt.split("\n") for word in ("--adopt", text)]
    words = ["orchestrator", "run", *adopted]
    if findings.resume_arg is not None:
        words += ["--resume-arg", findings.resume_arg]
    return shlex.join([*words, "--", *command])


def _goes_on(findings: Findings) -> str:
    patterns = " or ".join(findings.adopt.split("\n"))
    return (
        "Its first start goes on from the newest of these saves; to begin from zero, delete what "
        f"matches {patterns} first."
    )


def _watched(look: Look) -> str:
    seconds = duration_text(look.seconds)
    if look.end.asked_seconds is None:
        return f"The script was watched for {seconds}, until it ended with {_status(look)}."
    if look.was_stopped:
        return f"The script was watched for {seconds}, until a signal ended the look."
    return f"The script was watched for {seconds}."


def _status(look: Look) -> str:
    return f"status {look.end.status}" if look.end.status >= 0 else f"signal {-look.end.status}"


def _notes(look: Look) -> Iterator[str]:
    if look.overwritten:
        names = [os.path.relpath(path) for path in look.overwritten[:MOST_OVERWRITTEN]]
        more = len(look.overwritten) - len(names)
        others = f" and {more} more" if more else ""
        yield f"It has written over files that were there before: {', '.join(names)}{others}."
    if look.was_cut_off:
        yield (
            "There are too many files here to watch all of them: saves in deep directories may "
            "have been missed. Start the look in the directory where the script saves."
        )


def _no_saves(look: Look, command: Sequence[str]) -> str:
    if look.session_run is not None:
        return (
            f"The script opens a Session ({os.path.relpath(look.session_run)} is its run "
            f"directory), which needs no --adopt: orchestrator run -- {shlex.join(command)}"
        )
    if look.end.asked_seconds is None and look.end.status != 0:
        return "It has saved nothing before it failed: correct the command, and look again."
    advice = "look longer (--for 30m), or have the script save more often"
    if look.end.asked_seconds is None:
        advice = "have the script save while it trains, or open a Session in it"
    return (
        "It has saved nothing that could be resumed from, so there is nothing to adopt: " + advice
    )


def _found(findings: Findings) -> Iterator[str]:
    group = findings.saves.group
    kind = "a directory" if group.is_directory else "a file"
    times = f"{group.saves} saves" if group.saves > 1 else "one save"
    yield f"It saves {kind} at a time ({times} seen, the last is {_size(group)}):"
    yield f"    {os.path.relpath(group.newest)}"
    if findings.saves.parts:
        names = ", ".join(part.newest.name for part in findings.saves.parts)
        yield f"Beside it there is always {names}."
    if group.likeness is Likeness.WEAK:
        yield "It may hold results or data instead of the state of a training: look into it first."
    yield ""
    for text in findings.adopt.split("\n"):
        yield f"--adopt       {shlex.quote(text)}"
    shown = "none" if findings.resume_arg is None else shlex.quote(findings.resume_arg)
    yield f"--resume-arg  {shown} ({findings.resume_source})"


def _size(group: SaveGroup) -> str:
    return size_text(group.bytes)


def _promises(look: Look, findings: Findings) -> Iterator[str]:
    yield "What --adopt can promise here:"
    for subject, text in _promised(look, findings):
        yield f"  {subject:10} {text}"


def _promised(look: Look, findings: Findings) -> Iterator[tuple[str, str]]:
    group = findings.saves.group
    yield "complete", _completeness(findings)
    yield "versions", _versions(group)
    yield "steps", _steps(findings)
    if findings.saves.parts:
        names = ", ".join(part.newest.name for part in findings.saves.parts)
        if len(findings.pattern.patterns) > 1:
            yield (
                "files",
                f"{group.newest.name} and {names} are one checkpoint: whole only together",
            )
        else:
            yield "files", f"only {group.newest.name} is adopted and restored, not {names}"
    yield "resume", _resume(findings)
    yield "a kill", _kill_costs(group)
    yield "a stop", _stop(look)
    yield (
        "hangs",
        "are noticed with --hang-timeout, longer than it is ever silent; else a script that does "
        "nothing at all, after its third save and half an hour",
    )


def _completeness(findings: Findings) -> str:
    known = findings.completeness
    if known is None:
        return "not known: the newest save is incomplete or gone; look again"
    if known.proven:
        return "a half-written save never counts: its files show whether it is complete"
    if findings.saves.group.is_directory:
        return (
            f"the first save counts after {LONG_QUIET_SECONDS:g} s without change, the others when "
            "they have all that the first has"
        )
    return (
        f"the format does not show it: a save counts after {LONG_QUIET_SECONDS:g} s without change,"
        " or when the next has begun under another name"
    )


def _versions(group: SaveGroup) -> str:
    if group.is_rewritten:
        return (
            "each save destroys the one before: a copy of every version goes into the run "
            f"directory, which keeps {DEFAULT_KEEP} ({_size(group)} each)"
        )
    if group.has_numbers:
        return "each save has a name of its own and stays where it is; --keep N deletes older ones"
    return "one save was seen; if the next has the same name, a copy of every version is kept"


def _steps(findings: Findings) -> str:
    pattern, newest = findings.pattern, findings.saves.group.newest
    number = pattern.step_of(newest)
    if number is None:
        return "no number in the names: steps count the saves"
    return f"the number in the name ({number} in {newest.name})"


def _resume(findings: Findings) -> str:
    if findings.resume_arg is None:
        return (
            "only if the script looks for its checkpoint itself, or reads ORCHESTRATOR_RESUME_FROM;"
            " otherwise each restart begins from zero: give it such an option, or a Session"
        )
    return "not tried: if the script does not read what it is offered, the first restart says so"


def _kill_costs(group: SaveGroup) -> str:
    seconds = group.seconds_between
    if seconds is None:
        return "costs the time since the last save"
    return f"costs the time since the last save, here up to {duration_text(seconds)}"


def _stop(look: Look) -> str:
    if look.end.asked_seconds is None:
        return "not seen: the script ended by itself"
    seconds = duration_text(look.end.asked_seconds)
    if look.end.was_killed:
        return f"the script did not end within {seconds} of the stop signal, and was killed"
    if look.has_saved_when_asked:
        return f"the script ended {seconds} after the stop signal, and saved in that time"
    return f"the script ended {seconds} after the stop signal, without a save"
