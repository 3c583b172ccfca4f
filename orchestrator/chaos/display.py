"""The progress display of chaos on standard error, and its final table on standard output."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from orchestrator.chaos.experiment_report import FaultRow, Report
from orchestrator.system.text import shown
from orchestrator.system.units import duration_text

PIPE_COLUMNS = 120


class ProgressDisplay:
    """Shows a progress bar on a terminal, and elsewhere a line for each trial."""

    def __init__(self, total: int) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("faults", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def print_line(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(Text(shown(text)))

    def fault_injected(self) -> None:
        """Advance the bar by one fault."""
        self._progress.advance(self._task)

    def trial_ended(self, report: Report) -> None:
        """Print a line after a trial, where there is no bar."""
        if not self._console.is_terminal:
            total = self._progress.tasks[0].total
            self.print_line(f"{len(report.injections)} of {total:.0f} faults injected")


def print_report(report: Report) -> None:
    """Print the table of faults, the problems, and a summary."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("fault")
    for title in ("injected", "survived", "exact", "steps lost", "seconds lost"):
        table.add_column(title, justify="right")
    for row in report.rows():
        table.add_row(*_cells(row), style=None if row.is_good else "red")
    console.print(table)
    for name in report.not_reached:
        console.print(Text(f"{name}: the script never reached this moment"))
    for injection in report.injections:
        if injection.problem is not None:
            console.print(Text(shown(f"{injection.name}: {injection.problem}"), style="red"))
    console.print(Text(_summary(report)))


def _cells(row: FaultRow) -> tuple[str, ...]:
    mean_steps, mean_seconds = row.steps_lost / row.injected, row.seconds_lost / row.injected
    return (
        row.fault,
        str(row.injected),
        str(row.survived),
        "yes" if row.exact == row.injected else f"{row.exact} of {row.injected}",
        f"{mean_steps:.1f} (at most {row.most_steps_lost})",
        f"{mean_seconds:.2f} (at most {row.most_seconds_lost:.2f})",
    )


def _summary(report: Report) -> str:
    bad = sum(not (one.survived and one.exact) for one in report.injections)
    verdict = (
        "every run ended like the undisturbed one, bit for bit"
        if not bad
        else f"{bad} of them lost the run or changed its result; the runs are kept: "
        + ", ".join(report.kept)
    )
    return (
        f"{len(report.injections)} faults in {report.trials} runs of {report.steps} steps"
        f"{f' with {report.ranks} ranks' if report.ranks > 1 else ''}, "
        f"{duration_text(report.seconds)}, seed {report.seed}: {verdict}"
    )
