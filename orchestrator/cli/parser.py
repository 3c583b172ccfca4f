"""The command line: what its words mean, and the end of the process with the right status."""

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from orchestrator import __version__
from orchestrator.chaos.faults import help_text
from orchestrator.cli import attach, control, run, transfer
from orchestrator.cli.slurm_script import slurm_script
from orchestrator.cli.systemd_unit import print_systemd_unit
from orchestrator.config import Config
from orchestrator.errors import OrchestratorError
from orchestrator.exitcodes import ExitStatus

RUN_HELP = """Running the same command again resumes.

Exit status: 0 training is complete; 75 stopped, saved; 74 stopped, the last steps not saved;
70 gave up; 65 no valid checkpoint; 78 configuration; 69 the run is in use.

Every option has an environment variable (ORCHESTRATOR_KEEP) and a key in orchestrator.toml or
[tool.orchestrator] of pyproject.toml."""

UNIT_HELP = """The unit runs the command in this directory, with this Python and the options given
here, which are those of `run`. Without --run-dir systemd gives the run a directory.
docs/how-to/systemd.md has more."""

SLURM_SCRIPT_HELP = """orchestrator slurm-script -- python train.py > train.sh; sbatch train.sh

It takes the options of `orchestrator run` too. docs/how-to/slurm.md has more."""


CHAOS_HELP = """The script runs twice without faults, then again and again under faults, each
time in a temporary run directory. The metrics of every step, the final weights, optimizer state and
random streams are compared bit for bit. What the script writes elsewhere, each run writes there.

Exit status: 0 all was survived and exact; 1 something was lost or differs, and the runs are kept.

A fault is an action, which means each of its moments in turn, or ACTION@MOMENT.

"""


def main() -> NoReturn:
    """Entry point; every error of ours becomes one line on standard error and its status."""
    try:
        arguments = parse(sys.argv[1:])
        sys.exit(arguments.do(arguments))
    except OrchestratorError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:
        # `orchestrator checkpoints list | head`: nobody reads the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitStatus.COMPLETE)


def parse(words: Sequence[str]) -> Namespace:
    """The arguments of the command line; ``do`` is the function to call. Exits with 2 on misuse."""
    # What follows the first -- is the command to run, whatever its words look like.
    split = words.index("--") if "--" in words else len(words)
    arguments, unknown = _parser().parse_known_args(_with_negative_values(words[:split]))
    tail = list(words[split + 1 :])
    if unknown:
        arguments.parser.error(f"unknown arguments: {' '.join(unknown)}")
    if arguments.takes_command:
        arguments.command += tail
        if not arguments.command:
            arguments.parser.error("name the COMMAND to run, after --")
    elif tail:
        arguments.parser.error(f"unexpected words after --: {' '.join(tail)}")
    return arguments


def _with_negative_values(words: Sequence[str]) -> list[str]:
    """The words with ``--every -5s`` as ``--every=-5s``, and the same for --resume-arg --resume.

    argparse would take -5s for an option and say only that --every lacks its value.
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
        description="Stop or kill training any way you like and lose (almost) nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    groups = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(groups)
    _add_systemd_unit(groups)
    _add_slurm_script(groups)
    _add_commands_to_a_run(groups)
    _add_checkpoints(groups)
    _add_chaos(groups)
    return parser


def _add_run(groups: Any) -> None:
    running = _add(groups, "run", run.run, "Run a training command: save, restart, resume.")
    _take_command(running, RUN_HELP)
    _take_settings(running)
    running.add_argument(
        "--detach",
        action="store_true",
        help="Run in the background, out of this terminal's reach; return when training runs.",
    )


def _add_systemd_unit(groups: Any) -> None:
    unit = _add(
        groups,
        "systemd-unit",
        print_systemd_unit,
        "Print a systemd unit for a training command.",
    )
    _take_command(unit, UNIT_HELP)
    unit.add_argument("--user", action="store_true", help="for the user's own service manager")
    unit.add_argument("--name", help="of the unit; default: that of the script")
    unit.add_argument("--run-as", metavar="ACCOUNT", help="whose service it is; default: yours")
    _take_settings(unit)


def _add_slurm_script(groups: Any) -> None:
    printing = _add(
        groups, "slurm-script", slurm_script, "Print a batch script that trains in SLURM."
    )
    _take_command(printing, SLURM_SCRIPT_HELP)
    printing.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of sbatch, such as time=4:00:00, gpus=1 or array=0-3; may be given often",
    )
    _take_settings(printing)


def _take_settings(command: argparse.ArgumentParser) -> None:
    for setting in fields(Config):
        option, text = "--" + setting.name.replace("_", "-"), setting.metadata["help"]
        if setting.type is bool:
            _add_switch(command, option, text)
            continue
        command.add_argument(
            option, metavar=setting.metadata["metavar"], help=text.replace("%", "%%")
        )


def _add_commands_to_a_run(groups: Any) -> None:
    showing = _add(
        groups, "status", control.status, "Show what a run does, and what a kill would lose."
    )
    showing.add_argument("--watch", action="store_true", help="refresh until the run ends")
    stopping = _add(groups, "stop", control.stop, "Have a run save and stop, and wait for its end.")
    saving = _add(
        groups, "checkpoint", control.checkpoint, "Have a run save now and keep training."
    )
    following = _add(
        groups,
        "attach",
        attach.attach,
        "Follow a run's output until its end, and end with its exit status; Ctrl-C leaves it "
        "running.",
    )
    examining = _add(
        groups,
        "doctor",
        _doctor,
        "Say what this machine and a run directory offer, and what to mend; 78 if something fails.",
    )
    for command in (showing, following, stopping, saving, examining):
        _take_run_dir(command)
    for command in (showing, examining):
        _take_json(command)


def _add_checkpoints(groups: Any) -> None:
    kept = groups.add_parser("checkpoints", help="List, verify, pin and copy checkpoints.")
    actions = kept.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listing = _add(actions, "list", control.list_, "List them, every byte verified.")
    verifying = _add(actions, "verify", control.verify, "Verify all; 65 if one is damaged.")
    pinning = _add(actions, "pin", control.pin, "Keep a checkpoint whatever --keep says.")
    unpinning = _add(actions, "unpin", control.unpin, "Let --keep decide about a checkpoint again.")
    exporting = _add(
        actions, "export", transfer.export, "Write one, verified, in a form that others read."
    )
    importing = _add(
        actions, "import", transfer.import_, "Make a file the checkpoint that a run goes on from."
    )
    for command in (listing, verifying, pinning, unpinning, exporting):
        _take_run_dir(command)
    for command in (listing, verifying):
        _take_json(command)
    for command in (pinning, unpinning, exporting):
        command.add_argument(
            "--step", type=int, help="the checkpoint of this step (the newest valid one)"
        )
    transfer.add_export_options(exporting)
    transfer.add_import_options(importing)


def _add_chaos(groups: Any) -> None:
    testing = _add(groups, "chaos", _chaos, "Prove on a script that no fault changes its result.")
    _take_command(testing, CHAOS_HELP + help_text())
    testing.add_argument(
        "--faults", metavar="NAME[:N],...", help="which, and how many of each (all of them, once)"
    )
    testing.add_argument("--count", type=_positive, metavar="N", help="so many in all")
    testing.add_argument("--seed", type=int, help="for the same choices as another time")
    _take_json(testing)


# Not above: what `orchestrator run` takes to start is part of a restart.


def _chaos(arguments: Namespace) -> int:
    from orchestrator.chaos.command import chaos

    return chaos(arguments)


def _doctor(arguments: Namespace) -> ExitStatus:
    from orchestrator.doctor.page import doctor

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
        help="the run; may be left out where there is only one in runs/",
    )


def _take_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_switch(command: argparse.ArgumentParser, option: str, text: str) -> None:
    """--option and --no-option, with the words that the environment and the files use."""
    name = option.removeprefix("--")
    setting = name.replace("-", "_")
    choice = command.add_mutually_exclusive_group()
    choice.add_argument(option, dest=setting, action="store_const", const="on", help=text)
    choice.add_argument(
        f"--no-{name}", dest=setting, action="store_const", const="off", help="Do without."
    )


def _add(
    group: Any, name: str, do: Callable[[Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = group.add_parser(
        name, help=text, description=text, allow_abbrev=False
    )
    command.set_defaults(do=do, parser=command, takes_command=False)
    return command
