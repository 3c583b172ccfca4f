"""Runs cases of interrupted training, each attempt in a process of its own, cut by a real signal.

Importing torch takes seconds, so it is imported once, with what the first optimizer would import,
and each attempt is a fork, which is safe as long as torch has not computed. Reads cases as JSON
from standard input, writes their results to standard output:

    python -m tests.training.attempts DIRECTORY < CASES > RESULTS
"""

import gc
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from orchestrator.rundir.paths import RunDir
from orchestrator.training import Session
from tests.support import wait_until
from tests.training.support import Training, assert_equal

SAMPLES, STEPS = 64, 4  # of an epoch
STOPPED, COMPLETE, KILLED = 75, 0, -int(signal.SIGKILL)


@dataclass
class Case:
    """How the loader is made, and where each attempt but the last is cut: place, step, signal."""

    loader: dict[str, Any]
    accumulate: int
    cuts: list[tuple[str, int, str]]


@dataclass
class Result:
    """How the attempts ended, how exact the last one was, and what differs from the whole run."""

    endings: list[int] = field(default_factory=list)
    exactness: str | None = None
    different: list[str] = field(default_factory=list)


def attempt(case: Case, directory: Path, cut: tuple[str, int, str] | None) -> None:
    """One attempt; the last one leaves its result beside the run."""
    torch.set_num_threads(1)
    batch_size = SAMPLES // STEPS // case.accumulate
    training = Training(
        epochs=2, accumulate=case.accumulate, size=SAMPLES, batch_size=batch_size, **case.loader
    )

    def interrupt(session: Session, place: str) -> bool:
        if cut is None or (place, session.global_step + (place == "step")) != tuple(cut[:2]):
            return False
        if cut[2] == "SIGKILL":
            if session.global_step:
                saved = RunDir(directory / "run").checkpoints
                wait_until(lambda: list(saved.glob("step-*")), "a checkpoint")
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    if cut is not None and cut[2] == "SIGKILL":
        os.environ["ORCHESTRATOR_EVERY"] = "1steps"
    if training.run(directory / "run", interrupt):
        torch.save(training.result() | {"exactness": training.exactness}, directory / "result.pt")
        os._exit(COMPLETE)
    os._exit(STOPPED)


def run_attempt(*arguments: Any) -> int:
    """Run an attempt, and return how it ended."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            attempt(*arguments)
        finally:
            sys.stderr.flush()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(case: Case, directory: Path) -> Result:
    """All attempts of a case; the uninterrupted run is shared, and made by the main process."""
    directory.mkdir(parents=True)
    result = Result()
    for cut in [*case.cuts, None]:
        result.endings.append(run_attempt(case, directory, cut))
    return result


def compare(directory: Path, whole: Path, result: Result) -> None:
    """Note what differs; the comparison itself is torch's, so it comes after all forks."""
    if not (directory / "result.pt").exists():
        result.different.append("no result")
        return
    mine, other = (torch.load(d / "result.pt", weights_only=False) for d in (directory, whole))
    result.exactness = mine["exactness"]
    for key in other.keys() - {"exactness"}:
        try:
            assert_equal({key: mine[key]}, {key: other[key]})
        except AssertionError:
            result.different.append(key)


def main() -> None:
    root = Path(sys.argv[1])
    gc.freeze()  # or the first collection of each attempt copies every page of what was imported
    cases = [Case(**case) for case in json.load(sys.stdin)]
    wholes = {}
    for case in cases:
        # The number of workers, and whether they persist, must not matter.
        key = (case.loader["shuffle"], case.accumulate)
        if key not in wholes:
            wholes[key] = root / f"whole-{len(wholes)}"
            run(Case({"shuffle": key[0]}, key[1], []), wholes[key])
    results = [run(case, root / str(number)) for number, case in enumerate(cases)]
    for number, (case, result) in enumerate(zip(cases, results, strict=True)):
        whole = wholes[case.loader["shuffle"], case.accumulate]
        compare(root / str(number), whole, result)
    json.dump([asdict(result) for result in results], sys.stdout)


if __name__ == "__main__":
    main()
