"""Puts other people's programs through kills and stops under adopt mode, and writes the table.

    python -m examples.adopt --checkouts DIR --python VENV/bin/python [--only NAME]...
        [--results build/adopted] [--page docs/reference/adopted-programs.md] [--seed 1]

DIR has a checkout of each program, under the name that programs.toml gives it. The programs run in
the environment of --python; what is not there is listed as not run, with what it needs. The result
of each program stays in --results, so that the page can be made from several calls.
"""

import argparse
import dataclasses
import datetime
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from examples.adopt.page import page
from examples.adopt.programs import Program, load, version_of
from examples.adopt.trial import Trial
from examples.adopt.verdict import broken_promises


def main() -> None:
    """Try the chosen programs, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.adopt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    programs = load()
    names = [program.name for program in programs]
    parser.add_argument("--checkouts", type=Path, required=True, metavar="DIR")
    parser.add_argument("--python", required=True, type=_executable, metavar="PATH")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME")
    parser.add_argument("--results", type=Path, default=Path("build/adopted"), metavar="DIR")
    parser.add_argument("--page", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    broken = False
    for program in programs:
        if not args.only or program.name in args.only:
            result = attempt(program, args)
            file = args.results / f"{program.name.replace(' ', '_').replace('/', '_')}.json"
            file.write_text(json.dumps(result, indent=1))
            outcome: Any = result.get("outcome")
            broken = broken or bool(outcome and broken_promises(program, outcome))
            print(f"{program.name}: {_in_words(program, result)}", flush=True)
    if args.page:
        results = [json.loads(path.read_text()) for path in args.results.glob("*.json")]
        args.page.write_text(page(programs, {result["name"]: result for result in results}))
    sys.exit(broken)


def _executable(text: str) -> str:
    found = shutil.which(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is no program; name the python of an environment")
    return os.path.abspath(found)  # the programs run in other directories


def _in_words(program: Program, result: dict[str, Any]) -> str:
    if "outcome" not in result:
        return f"not run: needs {result['not_run']}"
    return "; ".join(broken_promises(program, result["outcome"])) or "as promised"


def attempt(program: Program, args: argparse.Namespace) -> dict[str, Any]:
    """Try one program, and return what is known then, ready for JSON."""
    checkouts = args.checkouts.absolute()
    known: dict[str, Any] = {"name": program.name, "date": str(datetime.date.today())}
    if missing := program.missing(args.python, checkouts):
        return known | {"not_run": missing}
    known["revision"] = program.revision(args.python, checkouts)
    known["torch"] = version_of(args.python, "torch")
    with tempfile.TemporaryDirectory(prefix="adopted-") as directory:
        trial = Trial(program, args.python, checkouts, Path(directory))
        try:
            trial.prepare()
        except subprocess.CalledProcessError as error:
            return known | {"not_run": f"the data could not be made: {error}"}
        outcome = trial.go_through(random.Random(args.seed))
        keep(Path(directory) / "work", args.results / program.name.replace(" ", "_"))
    return known | {"outcome": dataclasses.asdict(outcome)}


def keep(work: Path, where: Path) -> None:
    """Keep the messages and the records of the run, for whoever wants to know more."""
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    for path in [work / "messages.txt", *(work / "run").glob("*.jsonl"), work / "run/attempts"]:
        if path.is_dir():
            shutil.copytree(path, where / path.name)
        elif path.exists():
            shutil.copy(path, where)


if __name__ == "__main__":
    main()
