"""The command line: parses the arguments, runs a command, ends with its exit status."""

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from orchestrator import __version__
from orchestrator.chaos.faults import help_text
from orchestrator.cli import (
    attach,
    checkpoint,
    checkpoints,
    report,
    run,
    runs,
    status,
    stop,
    transfer,
)
from orchestrator.cli.slurm_script import slurm_script
from orchestrator.cli.systemd_unit import print_systemd_unit
from orchestrator.config import REPEATED, Config
from orchestrator.errors import OrchestratorError
from orchestrator.exitcodes import ExitStatus
from orchestrator.terminal.printing import escape_what_cannot_be_encoded, print_text

# As torchrun takes it.
ALIASES = {"--nproc-per-node": ("--nproc_per_node",)}

RUN_HELP = """Run the same command again to resume.

Exit status: 0 training is complete; 75 stopped, saved; 74 stopped, the last steps not saved;
70 gave up; 65 no valid checkpoint; 78 configuration error; 69 the run is in use.

Every option can also be set by an environment variable (ORCHESTRATOR_KEEP for --keep), or by a key
in orchestrator.toml or in [tool.orchestrator] of pyproject.toml."""

UNIT_HELP = """The unit runs the command in this directory, with this Python and with the options
given here, which are those of `run`. Without --run-dir, systemd provides the run directory.
See docs/how-to/systemd.md."""

ADOPT_HELP = """The script is asked for its --help, and then trains from zero. What it
writes stays, and what it writes over is gone. Two saves end the look, or its time, or Ctrl-C. The
script then gets the stop signal, and is killed after the grace period, or on another Ctrl-C.

Exit status: 0 if there is something to adopt, else 1. See docs/how-to/adopt-a-script.md."""

SLURM_SCRIPT_HELP = """orchestrator slurm-script -- python train.py > train.sh; sbatch train.sh

The options of `orchestrator run` can be given too. See docs/how-to/slurm.md."""


CHAOS_HELP = """The script runs twice without faults, and then many times under faults, each time
in a temporary run directory. The metrics of every step, the final weights, the optimizer state and
the random streams are compared bit for bit. Of a Hugging Face Trainer with the callback these are
the steps, the losses of the batches, what it logs, and the files of the last checkpoint. Files that
the script writes to other places are written by every one of these runs.

Exit status: 0 if every fault was survived with the exact result; 1 if not, and the failed runs are
kept.

A fault is ACTION@MOMENT. ACTION alone stands for that action at each of its moments in turn.

With --nproc-per-node every run has so many ranks, and the steps and the own files of each rank are
compared too. Each fault meets a rank that is drawn, where it does not say which.

"""


def main() -> NoReturn:
    """Run the command line and end the process.

    An OrchestratorError becomes one line on standard error and its exit status.
    """
    escape_what_cannot_be_encoded()
    try:
        arguments = parse(sys.argv[1:])
        sys.exit(arguments.run_command(arguments))
    except OrchestratorError as error:
        print_text(error, to_stderr=True)
        sys.exit(error.status)
    except BrokenPipeError:
        # In `orchestrator checkpoints list | head`, no process reads the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitStatus.COMPLETE)


def parse(words: Sequence[str]) -> Namespace:
    """Return the parsed arguments; ``run_command`` is the function to call with them.

    Ends the process with status 2 on misuse.
    """
    # Everything after the first -- is the command to run, whatever its words look like.
    split = words.index("--") if "--" in words else len(words)
    arguments, unknown = _parser().parse_known_args(_with_negative_values(words[:split]))
    tail = list(words[split + 1 :])
    if unknown:
        advice = "; put -- before the command" if "--" not in words else ""
        arguments.parser.error(
            f"unknown arguments: {' '.join(unknown)}{advice if arguments.takes_command else ''}"
            f"{_nearest(unknown, arguments.parser)}; see `{arguments.parser.prog} --help`"
        )
    if arguments.takes_command:
        arguments.command += tail
        if not arguments.command:
            arguments.parser.error("name the COMMAND to run, after --")
    elif tail:
        arguments.parser.error(f"unexpected arguments after --: {' '.join(tail)}")
    return arguments


def _nearest(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Return the options that unknown words may stand for, as the end of a sentence."""
    known = [option for action in parser._actions for option in action.option_strings]
    words = (word.partition("=")[0] for word in unknown if word.startswith("--"))
    meant = [match for word in words for match in get_close_matches(word, known, n=1)]
    return f"; did you mean {', '.join(meant)}?" if meant else ""


def _with_negative_values(words: Sequence[str]) -> list[str]:
    """Return the words with ``--every -5s`` as ``--every=-5s``; also for --resume-arg --resume.

    argparse would read -5s as an option, and report only that --every lacks its value.
    """
    joined: list[str] = []
    for word in words:
        is_number = word[:1] == "-" and word[1:2].isdecimal()
        if joined and (joined[-1] == "--resume-arg" or (joined[-1].startswith("--") and is_number)):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orchestrator",
        description="Stop a PyTorch training run and lose nothing. Kill it and lose seconds. Cut "
        "the power and lose the time since the last checkpoint.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    groups = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(groups)
    _add_adopt(groups)
    _add_systemd_unit(groups)
    _add_slurm_script(groups)
    _add_commands_to_a_run(groups)
    _add_checkpoints(groups)
    _add_chaos(groups)
    return parser


def _add_run(groups: Any) -> None:
    running = _add(groups, "run", run.run, "Run a training command; save, restart and resume it.")
    _take_command(running, RUN_HELP)
    _take_settings(running)
    running.add_argument(
        "--detach",
        action="store_true",
        help="Run in the background, independent of this terminal; return once it trains.",
    )
    running.add_argument(
        "--continue",
        action="store_true",
        dest="accept_other",
        help="Train a complete run further with other arguments, or go on with a run whose script "
        "has another name or place now. Without it both are refused.",
    )
    running.add_argument(
        "--trust",
        action="store_true",
        help="Resume from files in the run directory that belong to another user, who is neither "
        "root nor a member of a group that shares the run. Without it they are refused. It is "
        "remembered: say it once.",
    )


def _add_adopt(groups: Any) -> None:
    looking = _add(
        groups,
        "adopt",
        _adopt,
        "Look at a script that saves for itself, and print the --adopt and --resume-arg for it.",
    )
    _take_command(looking, ADOPT_HELP)
    looking.add_argument(
        "--for",
        dest="look_for",
        default="3m",
        metavar="3m",
        help="watch the script for this long at most; default: 3m",
    )
    looking.add_argument(
        "--write",
        action="store_true",
        help="write what was found into orchestrator.toml in this directory",
    )


def _add_systemd_unit(groups: Any) -> None:
    unit = _add(
        groups,
        "systemd-unit",
        print_systemd_unit,
        "Print a systemd unit for a training command.",
    )
    _take_command(unit, UNIT_HELP)
    unit.add_argument(
        "--user", action="store_true", help="print a unit for the user's own service manager"
    )
    unit.add_argument("--name", help="the unit's name; default: the name of the script")
    unit.add_argument(
        "--run-as", metavar="ACCOUNT", help="the account that runs the service; default: yours"
    )
    _take_settings(unit)


def _add_slurm_script(groups: Any) -> None:
    printing = _add(
        groups, "slurm-script", slurm_script, "Print a SLURM batch script for a training command."
    )
    _take_command(printing, SLURM_SCRIPT_HELP)
    printing.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of sbatch, such as time=4:00:00, gpus=1 or array=0-3; can be repeated",
    )
    _take_settings(printing)


class _AddLine(argparse.Action):
    """Adds each further value of an option as a line to its text."""

    def __call__(self, parser: Any, namespace: Namespace, values: Any, _: Any = None) -> None:
        earlier = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if earlier is None else f"{earlier}\n{values}")


def _take_settings(command: argparse.ArgumentParser) -> None:
    for setting in fields(Config):
        option, text = "--" + setting.name.replace("_", "-"), setting.metadata["help"]
        if setting.type is bool:
            _add_switch(command, option, text)
            continue
        command.add_argument(
            option,
            *ALIASES.get(option, ()),
            action=_AddLine if setting.name in REPEATED else "store",
            metavar=setting.metadata["metavar"],
            help=text.replace("%", "%%"),
        )


def _add_commands_to_a_run(groups: Any) -> None:
    showing = _add(
        groups,
        "status",
        status.status,
        "Show what a run is doing, what is at risk now, or why it failed.",
    )
    showing.add_argument(
        "--watch",
        action="store_true",
        help="refresh until the run ends, with a curve of the loss and the last events",
    )
    listing = _add(groups, "runs", runs.runs, "Show every run below a directory, one line each.")
    listing.add_argument(
        "directory", nargs="?", type=Path, metavar="DIR", help="where the runs are; default: runs"
    )
    listing.add_argument(
        "--sort", choices=runs.SORT_KEYS, default="run", help="what to sort by; default: run"
    )
    listing.add_argument("--watch", action="store_true", help="refresh until Ctrl-C")
    stopping = _add(groups, "stop", stop.stop, "Save and stop a run, and wait until it has ended.")
    saving = _add(
        groups,
        "checkpoint",
        checkpoint.checkpoint,
        "Save a checkpoint now, without stopping the run.",
    )
    reporting = _add(
        groups, "report", report.report, "Write one self-contained page about a run, done or not."
    )
    following = _add(
        groups,
        "attach",
        attach.attach,
        "Follow a run's output until it ends, and exit with its status; Ctrl-C leaves the run "
        "running.",
    )
    examining = _add(
        groups,
        "doctor",
        _doctor,
        "Check this machine and a run directory, and say what to fix; exit with 78 if a check "
        "fails.",
    )
    for command in (showing, following, reporting, stopping, saving, examining):
        _take_run_dir(command)
    for command in (showing, listing, examining):
        _take_json(command)
    report.add_options(reporting)


def _add_checkpoints(groups: Any) -> None:
    kept = groups.add_parser(
        "checkpoints", help="List, verify, pin, export and import checkpoints."
    )
    actions = kept.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listing = _add(
        actions, "list", checkpoints.list_, "List the checkpoints, with every byte verified."
    )
    verifying = _add(
        actions,
        "verify",
        checkpoints.verify,
        "Verify all checkpoints; exit with 65 if one is damaged.",
    )
    pinning = _add(actions, "pin", checkpoints.pin, "Keep a checkpoint, whatever --keep says.")
    unpinning = _add(
        actions, "unpin", checkpoints.unpin, "Let --keep decide about a checkpoint again."
    )
    exporting = _add(
        actions,
        "export",
        transfer.export,
        "Verify a checkpoint and write it in a form that other programs read.",
    )
    importing = _add(
        actions, "import", transfer.import_, "Import a file as the checkpoint that a run resumes."
    )
    for command in (listing, verifying, pinning, unpinning, exporting):
        _take_run_dir(command)
    for command in (listing, verifying):
        _take_json(command)
    for command in (pinning, unpinning, exporting):
        command.add_argument(
            "--step", type=int, help="the checkpoint of this step; default: the newest valid one"
        )
    transfer.add_export_options(exporting)
    transfer.add_import_options(importing)


def _add_chaos(groups: Any) -> None:
    testing = _add(groups, "chaos", _chaos, "Check that faults do not change a script's result.")
    _take_command(testing, CHAOS_HELP + help_text())
    testing.add_argument(
        "--faults",
        metavar="NAME[:N],...",
        help="the faults to inject, and how many of each; default: every fault once",
    )
    testing.add_argument("--count", type=_positive, metavar="N", help="inject N faults in all")
    testing.add_argument("--seed", type=int, help="repeat the choices of an earlier run")
    testing.add_argument(
        "--nproc-per-node",
        *ALIASES["--nproc-per-node"],
        metavar="N|gpu|cpu",
        help="run the command with so many ranks, as `orchestrator run` does; default: 1",
    )
    _take_json(testing)


# These import on use, since the start of `orchestrator run` is part of every restart.


def _adopt(arguments: Namespace) -> int:
    from orchestrator.cli.adopt import adopt

    return adopt(arguments)


def _chaos(arguments: Namespace) -> int:
    from orchestrator.chaos.experiment import chaos

    return chaos(arguments)


def _doctor(arguments: Namespace) -> ExitStatus:
    from orchestrator.doctor.run_checks import doctor

    return doctor(arguments)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _take_command(command: argparse.ArgumentParser, epilog: str) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.usage = f"{command.prog} [OPTIONS] -- COMMAND..."
    command.epilog = epilog
    command.add_argument("command", nargs="*", metavar="-- COMMAND", help="python train.py ...")
    command.set_defaults(takes_command=True)


def _take_run_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run_dir",
        nargs="?",
        type=Path,
        metavar="RUN_DIR",
        help="the directory of the run; not needed when runs/ holds only one",
    )


def _take_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_switch(command: argparse.ArgumentParser, option: str, text: str) -> None:
    """Add ``--option`` and ``--no-option``, which mean ``on`` and ``off`` in a file."""
    name = option.removeprefix("--")
    setting = name.replace("-", "_")
    choice = command.add_mutually_exclusive_group()
    choice.add_argument(option, dest=setting, action="store_const", const="on", help=text)
    choice.add_argument(
        f"--no-{name}", dest=setting, action="store_const", const="off", help="Turn this off."
    )


def _add(
    group: Any, name: str, run_command: Callable[[Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = group.add_parser(
        name, help=text, description=text, allow_abbrev=False
    )
    command.set_defaults(run_command=run_command, parser=command, takes_command=False)
    return command
