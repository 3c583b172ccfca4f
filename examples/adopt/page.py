"""Writes the page of adopted programs from the results of trials."""

import shlex
from collections.abc import Mapping
from typing import Any

from examples.adopt.programs import Program
from examples.adopt.trial import FAULTS
from examples.adopt.verdict import broken_promises

HEAD = """# Programs that were adopted

Public programs that save for themselves, run under [`--adopt`](../how-to/adopt-a-script.md) and
interrupted in five ways. Each is one run: a SIGKILL at a random moment, a SIGKILL as soon as a
save has begun, a SIGTERM to the supervisor, Ctrl-C on a terminal, a `kill -9` of the
supervisor. After the last three the same command is given again. Then the program trains to its
end, every saved file of a known kind is loaded once more, and processes that are left are counted.

The commands are shrunk so that each trains for a minute or two on two CPU cores, with tiny made-up
data and random weights. A script writes this page from [anybody's checkouts](#do-it-yourself); the
code of the programs is no part of this project. A layout is a small script in
`examples/adopt/layouts/` that saves as the program does, where the program itself needs several
GPUs, or where there is no program of its own.

## What each needs, and what that promises

| program | options of `orchestrator run` | promise |
|---|---|---|
"""
FAULTS_HEAD = f"""
## What happened

A cell has the last count before the fault and the first one after it: what lies between was done
again. The counts are what the program prints; where that is only a progress bar, the last save
before the fault and the first one after it. A status is the supervisor's, as a shell shows it.

| program | counts | {" | ".join(FAULTS)} | end |
|---|---|{"---|" * len(FAULTS)}---|
"""
REST_HEAD = """
| program | revision | tried on | attempts | saves | set aside as torn | loaded at the end \
| processes left | nothing broken |
|---|---|---|---|---|---|---|---|---|
"""
FOOT = """
## Do it yourself

```
python -m venv ~/programs
~/programs/bin/pip install torch numpy      # what the programs need; programs.toml names it
git clone https://github.com/karpathy/nanoGPT checkouts/nanoGPT
python -m examples.adopt --checkouts checkouts --python ~/programs/bin/python --only nanoGPT
```

`examples/adopt/programs.toml` has the commands, and is the place for a program of your own. One
whose checkout or packages are missing is listed as not run, with what it needs. `--page FILE`
writes this page. The results and the output of each attempt stay in `build/adopted/`. The status
is 1 if anything was broken.
"""


def page(programs: list[Program], results: Mapping[str, dict[str, Any]]) -> str:
    """Return the page as Markdown."""
    tried = [(program, results.get(program.name, {})) for program in programs]
    parts = [
        HEAD,
        *(_options_row(program) for program in programs),
        FAULTS_HEAD,
        *(_faults_row(program, result) for program, result in tried),
        REST_HEAD,
        *(_rest_row(program, result) for program, result in tried if "outcome" in result),
        FOOT,
    ]
    return "".join(parts)


def _options_row(program: Program) -> str:
    options = " ".join(map(shlex.quote, program.adopt_options))
    return f"| [{program.name}]({program.source}) | `{options}` | {program.promise} |\n"


def _faults_row(program: Program, result: dict[str, Any]) -> str:
    if "outcome" not in result:
        needs = result.get("not_run", "a trial")
        return _row(program.name, f"not run: needs {needs}", *[""] * (len(FAULTS) + 1))
    outcome = result["outcome"]
    faults = {fault["name"]: fault for fault in outcome["faults"]}
    cells = [_fault_cell(faults.get(name)) for name in FAULTS]
    end = f"{outcome['end']}, status {outcome['status']}"
    return _row(program.name, program.unit, *cells, end)


def _fault_cell(fault: dict[str, Any] | None) -> str:
    if fault is None:
        return "had ended"
    status = "" if fault["status"] is None else f", status {fault['status']}"
    after = fault["problem"] or fault["first"]
    return f"{fault['last']} → {after}{status}"


def _rest_row(program: Program, result: dict[str, Any]) -> str:
    outcome, revision = result["outcome"], result["revision"]
    if "torch" not in revision and result["torch"]:
        revision += f", torch {result['torch']}"
    loaded, torn = outcome["loaded"], len(outcome["torn"])
    files = f"{loaded} of {loaded + torn} files"
    kept = "; ".join(broken_promises(program, outcome)) or "yes"
    counts = (outcome["attempts"], outcome["saves"], len(outcome["set_aside"]))
    return _row(program.name, revision, result["date"], *counts, files, outcome["left"], kept)


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"
