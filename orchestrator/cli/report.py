"""The command `orchestrator report`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from orchestrator.client import existing_run, file_errors
from orchestrator.system.durable import replace_file
from orchestrator.terminal.printing import print_text


def report(arguments: Namespace) -> None:
    """Write one self-contained page about a run, which may still go on."""
    # jinja2 is imported here, so that only this command loads it.
    from orchestrator.run_report.facts import report_facts
    from orchestrator.run_report.page import report_page

    output: Path = arguments.output
    page = report_page(report_facts(existing_run(arguments.run_dir)))
    with file_errors(f"cannot write {output}"):
        replace_file(output, page.encode())
    print_text(f"wrote {output}")


def add_options(command: ArgumentParser) -> None:
    """Add the options of the command."""
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the file to write, in place of an earlier one; default: report.html",
    )
