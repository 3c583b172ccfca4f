"""Kills and stops a framework's training, and compares its end with that of an undisturbed run.

`orchestrator chaos` looks into sessions; a framework's run is known by what it publishes. So a fault
comes at a random time after each new checkpoint, and what counts is the bytes of the last one.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.reading import verify
from tests.e2e.support import Supervised, events, forked_by, forking_server, open_store, wait_for

KILLS, STOPS = 20, 5
# Times and paths are in these, and nothing that is trained.
TOLD_APART = {"trainer_state.json", "training_args.bin"}


def survive(script: Path, arguments: tuple[str, ...], module: str, seed: int) -> dict[str, Any]:
    """The report on one script, in the form of `orchestrator chaos --json`."""
    began, chance = time.monotonic(), random.Random(seed)
    faults = ["sigkill"] * KILLS + ["sigterm"] * STOPS
    chance.shuffle(faults)
    with tempfile.TemporaryDirectory(prefix="survival-") as directory:
        root = Path(directory)
        with forking_server(root / "server", module, OMP_NUM_THREADS="1"):
            command = [*forked_by(root / "server"), str(script), *arguments]
            undisturbed = _run(root / "undisturbed", command)
            assert undisturbed.end()[0] == 0
            lost, problem = _disturb(root, command, faults, chance)
        exact = not problem and _end(root / "disturbed") == _end(root / "undisturbed")
        steps = open_store(undisturbed.run).all()[-1].manifest.step
    problems = [problem or "the end is not that of the undisturbed run"] if not exact else []
    return {
        "steps": steps,
        "trials": 1,
        "injected": len(faults),
        "survived": 0 if problem else len(faults),
        "exact": len(faults) if exact else 0,
        "seconds": time.monotonic() - began,
        "faults": [_row(name, lost[name], not problem, exact) for name in ("sigkill", "sigterm")],
        "problems": problems,
    }


def _run(root: Path, command: list[str]) -> Supervised:
    root.mkdir(exist_ok=True)
    return Supervised(root, command=command, stdout=sys.stderr)


def _disturb(
    root: Path, command: list[str], faults: list[str], chance: random.Random
) -> tuple[dict[str, list[int]], str]:
    """Steps that each fault had done again, by its name, and why the run was lost, if it was."""
    lost: dict[str, list[int]] = {"sigkill": [], "sigterm": []}
    run = _run(root / "disturbed", command)
    for fault in faults:
        known = len(events(run.run, "checkpoint_published"))
        run.wait_for_event("checkpoint_published", count=known + 1)
        time.sleep(chance.uniform(0.0, 1.0))
        if fault == "sigterm":
            run.signal(signal.SIGTERM)
            status, _, told = run.end()
            if status != 75:
                return lost, f"status {status} after a SIGTERM: {told[-2000:]}"
            run = _run(root / "disturbed", command)
        else:
            os.kill(int((root / "server.pid").read_text()), signal.SIGKILL)
        ended = len(lost["sigkill"]) + len(lost["sigterm"]) + 1
        end = run.wait_for_event("attempt_exited", count=ended)
        begun = run.wait_for_event("attempt_started", count=ended + 1)
        lost[fault].append(end["step"] - (begun["resume_step"] or 0))
    status, _, told = run.end()
    return lost, "" if status == 0 else f"status {status} at the end: {told[-2000:]}"


def _end(root: Path) -> dict[str, str]:
    """The digests of what the last checkpoint has, every byte verified."""
    run = wait_for(lambda: root / "run", "a run")
    newest = open_store(RunDir(run)).all()[-1]
    verify(newest)
    files = newest.manifest.files.items()
    return {name: record.xxh3_128 for name, record in files if name not in TOLD_APART}


def _row(name: str, lost: list[int], survived: bool, exact: bool) -> dict[str, Any]:
    return {
        "fault": name,
        "injected": len(lost),
        "survived": len(lost) if survived else 0,
        "exact": len(lost) if exact else 0,
        "steps_lost": sum(lost),
        "most_steps_lost": max(lost, default=0),
        "seconds_lost": 0.0,
        "most_seconds_lost": 0.0,
    }
