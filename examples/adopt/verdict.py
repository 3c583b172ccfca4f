"""Judges whether a trial kept every promise."""

from typing import Any

from examples.adopt.programs import Program
from examples.adopt.trial import FAULTS


def broken_promises(program: Program, outcome: dict[str, Any]) -> list[str]:
    """Return what was broken, in words; empty if nothing was.

    How far a program goes back is in the counts, and is not judged.
    """
    found = [outcome["problem"]] if outcome["problem"] else []
    missing = len(FAULTS) - len(outcome["faults"])
    if missing:
        found.append(f"it had ended before the last {missing} of the faults")
    for fault in outcome["faults"]:
        found += [f"{fault['name']}: {text}" for text in _broken_by(fault, program, outcome)]
    if outcome["status"] != 0:
        found.append(f"the run ended with {outcome['status']}")
    if outcome["torn"]:
        found.append(f"{len(outcome['torn'])} of its files cannot be loaded")
    if not outcome["verified"]:
        found.append("a checkpoint is not valid")
    if program.message and not any(program.message in text for text in outcome["messages"]):
        found.append(f"no message said: {program.message}")
    if outcome["left"]:
        found.append(f"{outcome['left']} processes were left")
    return found


def _broken_by(fault: dict[str, Any], program: Program, outcome: dict[str, Any]) -> list[str]:
    if fault["problem"]:
        return [fault["problem"]]
    if program.saves_at_all and not fault["offered"]:
        return ["no checkpoint was offered to the next attempt"]
    began_anew = fault["first"] <= outcome["beginning"] < fault["last"]
    if program.resumes and began_anew and not fault["resumed"]:
        return ["it began from zero"]
    return []
