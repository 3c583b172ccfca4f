"""Runs `orchestrator chaos` on each subject, and prints a table of all results.

    python -m tests.survival [--only NAME]... [--seed 1] [--directory build/survival]

Each subject's report is written to NAME.json in the directory. The table contains every report
there, so the matrix can be run in pieces.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.breakpoints.trial_files import VARIABLE
from orchestrator.chaos.faults import FAULTS
from tests.e2e.support import TRAIN, clean_environment, forked_by, forking_server

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
TRAIN_DDP = TRAIN.with_name("train_ddp.py")
# A run that is over in an instant leaves no time for the faults that come a moment after another.
SLOW = ("--step-seconds", "0.02")


@dataclass(frozen=True)
class Subject:
    """A script, and the faults that are injected into its runs.

    With ``forked``, its trainers are forked from a process that has imported torch, so that a
    restart is fast. Otherwise they are started as users start them, with a spare.
    """

    name: str
    script: Path
    arguments: tuple[str, ...]
    count: int
    """The number of faults."""
    forked: bool
    imports: str = "sklearn.datasets"
    """The module that the forking process has imported in addition to torch."""
    faults: str | None = None
    """The kinds of faults; all kinds if None."""
    ranks: int = 1


SUBJECTS = (
    Subject("train", TRAIN, ("--epochs", "10", "--samples", "64"), 340, True),
    Subject("train-uneven", TRAIN, ("--epochs", "10", "--samples", "62"), 310, True),
    Subject(
        "train-workers",
        TRAIN,
        ("--epochs", "6", "--samples", "64", "--workers", "2", "--persistent"),
        100,
        True,
    ),
    Subject("digits", EXAMPLES / "digits.py", ("--epochs", "4", "--workers", "0"), 100, True),
    Subject(
        "char-gpt",
        EXAMPLES / "char_gpt.py",
        ("--steps", "60", "--batch-size", "4", "--context", "32", "--megabytes", "0.1"),
        110,
        True,
    ),
    Subject("linear", EXAMPLES / "linear.py", (), 136, True),
    Subject("train-spare", TRAIN, ("--epochs", "6", "--samples", "64"), 62, False),
    Subject(
        "accelerate",
        EXAMPLES / "accelerate_digits.py",
        ("--epochs", "4", "--workers", "2"),
        25,
        True,
        imports="accelerate",
        faults="sigkill:20,sigterm:5",
    ),
    Subject("train-ddp", TRAIN_DDP, ("--epochs", "12", *SLOW), 102, True, ranks=2),
    Subject(
        "ddp-digits",
        EXAMPLES / "ddp_digits.py",
        ("--epochs", "2"),
        20,
        True,
        faults="sigkill:4,sigkill-rank-0:2,sigkill-all-but-one:2,sigterm-rank:2,sigstop-rank:2,"
        "exception-rank,kill-supervisor@announced,kill-supervisor@parts,bit-flip-part,missing-part,"
        "disk-full@parts,io-error@parts,sigterm@any",
        ranks=2,
    ),
    Subject("digits-spare", EXAMPLES / "digits.py", ("--epochs", "4"), 20, False),
    Subject(
        "lightning",
        EXAMPLES / "lightning_digits.py",
        ("--epochs", "4", "--samples", "640"),
        25,
        True,
        imports="orchestrator.integrations.lightning",
        faults="sigkill:20,sigterm:5",
    ),
    Subject(
        "transformers",
        EXAMPLES / "hf_trainer.py",
        ("--epochs", "12", "--samples", "128", "--context", "16", "--save-steps", "20"),
        62,
        True,
        imports="orchestrator.integrations.transformers",
    ),
)


def run(subject: Subject, seed: int) -> dict[str, Any]:
    """Run ``orchestrator chaos`` on one subject, and return its report."""
    environment = clean_environment()
    if subject.forked:
        with tempfile.TemporaryDirectory(prefix="survival-") as directory:
            address = Path(directory) / "server"
            with forking_server(address, subject.imports, **{VARIABLE: ""}):
                return chaos(forked_by(address), subject, seed, environment)
    del environment["ORCHESTRATOR_SPARE"]
    return chaos([sys.executable], subject, seed, environment)


def chaos(
    interpreter: list[str], subject: Subject, seed: int, environment: dict[str, str]
) -> dict[str, Any]:
    options = ["--count", str(subject.count), "--seed", str(seed), "--json"]
    options += ["--nproc-per-node", str(subject.ranks)]
    if subject.faults is not None:
        options += ["--faults", subject.faults]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "orchestrator", "chaos", *options),
            *("--", *interpreter, str(subject.script), *subject.arguments),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if not result.stdout:
        sys.exit(result.returncode)
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def rows(reports: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table with a row for each fault, over all subjects."""
    yield "| fault | injected | survived | exact | steps lost | seconds lost |"
    yield "|---|---|---|---|---|---|"
    for fault in FAULTS:
        found = [r for report in reports for r in report["faults"] if r["fault"] == fault.name]
        if found:
            total = {key: sum(row[key] for row in found) for key in found[0] if key != "fault"}
            steps, seconds = (
                f"{total[f'{unit}_lost'] / total['injected']:.1f}, at most "
                f"{max(row[f'most_{unit}_lost'] for row in found):.{digits}f}"
                for unit, digits in (("steps", 0), ("seconds", 1))
            )
            counts = " | ".join(str(total[key]) for key in ("injected", "survived", "exact"))
            yield f"| `{fault.name}` | {counts} | {steps} | {seconds} |"


def summary(reports: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table with a row for each subject."""
    yield "| subject | steps | runs | injected | survived | exact | minutes |"
    yield "|---|---|---|---|---|---|---|"
    keys = ("steps", "trials", "injected", "survived", "exact")
    for name, report in reports.items():
        counts = " | ".join(str(report[key]) for key in keys)
        yield f"| `{name}` | {counts} | {report['seconds'] / 60:.1f} |"
    sums = [sum(report[key] for report in reports.values()) for key in keys[1:]]
    yield f"| all | | {' | '.join(map(str, sums))} | |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.survival", description=__doc__)
    names = [subject.name for subject in SUBJECTS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path("build/survival"))
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    for subject in SUBJECTS:
        if not args.only or subject.name in args.only:
            print(f"{subject.name}: {subject.count} faults", file=sys.stderr, flush=True)
            report = run(subject, args.seed)
            (args.directory / f"{subject.name}.json").write_text(json.dumps(report, indent=1))
    files = {name: args.directory / f"{name}.json" for name in names}
    reports = {n: json.loads(file.read_text()) for n, file in files.items() if file.exists()}
    print("\n".join((*summary(reports), "", *rows([*reports.values()]))))
    problems = [f"{name}: {p}" for name, r in reports.items() for p in r["problems"]]
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    main()
