"""Runs every check and prints the findings."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from orchestrator.client import existing_run
from orchestrator.config import Config
from orchestrator.doctor import disk, grace_period, machine
from orchestrator.doctor.findings import CheckedRun, Finding, Level
from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.rundir.paths import DEFAULT_PARENT, RunDir
from orchestrator.system.text import shown
from orchestrator.terminal.printing import print_text

CHECKS: tuple[Callable[[CheckedRun], Finding | Iterable[Finding]], ...] = (
    machine.versions,
    machine.capabilities,
    disk.filesystem,
    disk.free_space,
    disk.speed,
    disk.clock,
    machine.memory,
    machine.limits,
    machine.gpus,
    grace_period.grace,
)
_COLOURS = {Level.OK: "\x1b[32m", Level.WARN: "\x1b[33m", Level.FAIL: "\x1b[31m"}


def doctor(arguments: Namespace) -> ExitStatus:
    """Check the machine and a run directory; return 78 if a check fails."""
    config = Config.resolve({}, os.environ, Path.cwd())
    facts = CheckedRun.read(_run_dir(arguments.run_dir, config), config)
    findings = list(run_checks(facts))
    if arguments.json:
        print_text(json.dumps([asdict(finding) for finding in findings]))
    else:
        kind = "the run directory" if os.path.exists(facts.run.run_file) else "for a new run in"
        print_text(f"checking {kind} {facts.run.root} on {os.uname().nodename}")
        for finding in findings:
            print(_line(finding, is_coloured=sys.stdout.isatty()))
    fails = any(finding.level is Level.FAIL for finding in findings)
    return ExitStatus.CONFIGURATION if fails else ExitStatus.COMPLETE


def run_checks(facts: CheckedRun) -> Iterator[Finding]:
    """Yield the findings of all checks in their order."""
    for check in CHECKS:
        found = check(facts)
        yield from [found] if isinstance(found, Finding) else found


def _run_dir(argument: Path | None, config: Config) -> RunDir:
    """Return the run that is meant, or the directory in which a new one would be made."""
    try:
        return existing_run(argument)
    except ConfigError:
        return RunDir(argument or config.run_dir or DEFAULT_PARENT)


def _line(finding: Finding, is_coloured: bool) -> str:
    level = finding.level.ljust(4)
    if is_coloured:
        level = f"{_COLOURS[finding.level]}{level}\x1b[0m"
    advice = f"\n{'':18}-> {finding.advice}" if finding.advice else ""
    return f"{level}  {finding.check:<11} {shown(finding.text)}{shown(advice)}"
