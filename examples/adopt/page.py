"""Writes the page of adopted programs from the results of trials."""

import shlex
from collections.abc import Mapping
from typing import Any

from examples.adopt.programs import Program
from examples.adopt.trial import FAULTS

HEAD = """# Programs that were adopted

Public programs that save for themselves, run under [`--adopt`](../how-to/adopt-a-script.md) and interrupted in five ways. Each
is one run: a SIGKILL at a random moment, a SIGKILL as soon as a file of a save changes, a SIGTERM to the supervisor, Ctrl-C on a terminal,
a `kill -9` of the supervisor. After the last three the same command is given again. Then the program trains to its end, every file
that it has saved is loaded once more, and processes that are left are counted.

The commands are shrunk so that each trains for about a minute on two CPU cores, with tiny made-up data and random weights. The
page is written by a script that works with anybody's checkouts ([how](#do-it-yourself)). The code of the programs is not part of this project.

"""
FOOT = """
## Do it yourself

```
python -m venv ~/programs
~/programs/bin/pip install torch torchvision timm ultralytics   # what the programs need
git clone https://github.com/karpathy/nanoGPT checkouts/nanoGPT
python -m examples.adopt --checkouts checkouts --python ~/programs/bin/python --only nanoGPT
```

`examples/adopt/programs.toml` has the commands, and is the place for one of your own. A program whose checkout or packages are missing is listed as
not run, with what it needs. `--page FILE` writes this page. The results, and the output of each attempt, stay in `build/adopted/`.
"""


def page(programs: list[Program], results: Mapping[str, dict[str, Any]]) -> str:
    """Return the page as Markdown."""
    tried = [(program, results.get(program.name, {})) for program in programs]
    parts = [
        HEAD,
        "## What each needs, and what it promises\n\n",
        "| program | options of `orchestrator run` | what that promises |\n|---|---|---|\n",
        *(_options_row(program) for program in programs),
        "\n## What happened\n\n",
        "A cell has the last count before the fault and the first one after it; what lies between is done again. The count is "
        "the program's own (iterations, batches, epochs), as it prints it.\n\n",
        "| program | counts | " + " | ".join(FAULTS) + " | end |\n",
        "|---|---|" + "---|" * len(FAULTS) + "---|\n",
        *(_faults_row(program, result) for program, result in tried),
        "\n| program | revision | tried on | attempts | saves | set aside as torn "
        "| loaded at the end | damaged | processes left |\n",
        "|---|---|---|---|---|---|---|---|---|\n",
        *(_rest_row(program, result) for program, result in tried),
        FOOT,
    ]
    return "".join(parts)


def _options_row(program: Program) -> str:
    options = " ".join(map(shlex.quote, program.adopt_options))
    return f"| [{program.name}]({program.source}) | `{options}` | {program.promise} |\n"


def _faults_row(program: Program, result: dict[str, Any]) -> str:
    if "outcome" not in result:
        needs = result.get("not_run", "python -m examples.adopt was not run for it")
        return f"| {program.name} | not run: needs {needs} |" + " |" * (len(FAULTS) + 1) + "\n"
    outcome = result["outcome"]
    faults = {fault["name"]: fault for fault in outcome["faults"]}
    cells = [_fault_cell(faults.get(name), outcome) for name in FAULTS]
    end = f"{outcome['end']}, status {outcome['status']}"
    if outcome["problem"]:
        end = f"**{outcome['problem']}**"
    return " | ".join((f"| {program.name}", program.unit, *cells, f"{end} |\n"))


def _fault_cell(fault: dict[str, Any] | None, outcome: dict[str, Any]) -> str:
    if fault is None:
        return "had ended"
    status = "" if fault["status"] is None else f", status {fault['status']}"
    if fault["problem"]:
        return f"{fault['last']}: {fault['problem']}{status}"
    return f"{fault['last']} → {fault['first']}{status}"


def _rest_row(program: Program, result: dict[str, Any]) -> str:
    if "outcome" not in result:
        return ""
    outcome = result["outcome"]
    revision = f"{result['revision']}"
    if "torch" not in revision and result["torch"]:
        revision += f", torch {result['torch']}"
    torn = len(outcome["torn"])
    verified = "" if outcome["verified"] else ", **not all verified**"
    partial = len(outcome["set_aside"])
    return (
        f"| {program.name} | {revision} | {result['date']} | {outcome['attempts']} "
        f"| {outcome['saves']} | {partial} | {outcome['loaded']} files{verified} | {torn} "
        f"| {outcome['left']} |\n"
    )
