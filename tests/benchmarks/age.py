"""Costs that must not grow with the age of a run, each at two ages: the ratio should be 1."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.position import Position
from orchestrator.checkpoint.publication import publish_state
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.cli.attach import NewestAttempt
from orchestrator.rundir.journal import Journal, JournalEvent, utc_now
from orchestrator.rundir.paths import RunDir
from orchestrator.telemetry.status import status_from_disk
from orchestrator.training.runtime.metrics import cut_off
from tests.benchmarks.figures import Figure, paired

EVENTS = (1_000, 1_000_000)
CHECKPOINTS = (10, 2_000)
METRIC_LINES = (10_000, 5_000_000)
ATTEMPTS = (10, 5_000)
REPEATS = 5
# Within the noise of these short measurements.
TARGET = 1.3
CYCLE = (
    (JournalEvent.ATTEMPT_STARTED, {"pid": 4711, "resume_step": 1, "from_memory": True}),
    (JournalEvent.RESUMED, {"path": None, "step": 1, "from_memory": True, "exactness": "EXACT"}),
    *[(JournalEvent.SNAPSHOT_TAKEN, {"step": 7, "bytes": 12345678, "interval_seconds": 1.5})] * 4,
    (JournalEvent.CHECKPOINT_PUBLISHED, {"path": "runs/a/checkpoints/step-000000000007",
     "step": 7, "epoch": 0, "healthy": True, "metrics": {}, "seconds": 0.5}),
    (JournalEvent.CHECKPOINT_DELETED, {"path": "runs/a/checkpoints/step-000000000007", "step": 7}),
    (JournalEvent.ATTEMPT_EXITED, {"kind": "killed", "step": 7, "outcome": "failed"}),
    (JournalEvent.RESTART_SCHEDULED, {"delay_seconds": 0.0, "failures": 1}),
)  # fmt: skip


def costs_of_age(root: Path) -> list[Figure]:
    """Measure starts, commands and resumes of a young run and of an old one."""
    return [*_journals(root), *_checkpoints(root), *_metrics(root), *_attempts(root)]


def _in_turns(name: str, young: Callable[[], object], old: Callable[[], object]) -> Figure:
    """Return a figure of the old run's seconds, whose floor are the young run's."""
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(REPEATS):
        for work, times in zip((young, old), seconds, strict=True):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
    return paired(name, seconds[1], seconds[0], "young run", TARGET)


def _new_run(root: Path) -> RunDir:
    shutil.rmtree(root, ignore_errors=True)
    run = RunDir(root)
    run.create()
    Store.open(run, ["true"])
    return run


def _start(run: RunDir) -> None:
    run.done_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "orchestrator", "run", "--run-dir", str(run.root)]
    subprocess.run(
        [*command, "--keep", str(CHECKPOINTS[-1]), "--", "true"], check=True, capture_output=True
    )


def write_journal(path: Path, events: int) -> None:
    """Write a journal of this many events, with progress between all restarts."""
    cycle = Journal(path.with_name("cycle.jsonl"))
    for event, facts in CYCLE:
        cycle.write(event, 1, **facts)
    text = cycle.path.read_text()
    with open(path, "w") as file:
        for step in range(1, events // len(CYCLE) + 1):
            later = text.replace(f"{7:012d}", f"{step:012d}").replace(
                '"step": 7', f'"step": {step}'
            )
            file.write(later)
    Journal(path).write(JournalEvent.RUN_STOPPED, None, status=75, step=9)


def _journals(root: Path) -> list[Figure]:
    runs = [_new_run(root / f"journal-{events}") for events in EVENTS]
    for run, events in zip(runs, EVENTS, strict=True):
        write_journal(run.journal_file, events)
        _start(run)
    young, old = (Store.open(run, ["true"]) for run in runs)
    of = f"of {EVENTS[1]:,} events"
    return [
        _in_turns(
            f"status of an ended run {of}",
            lambda: status_from_disk(young),
            lambda: status_from_disk(old),
        ),
        _in_turns(f"start of a run {of}", lambda: _start(runs[0]), lambda: _start(runs[1])),
    ]


def publish(store: Store, step: int) -> Checkpoint:
    """Publish a small checkpoint of this step."""

    def write(file: DigestingWriter) -> None:
        file.write(b"state")

    manifest = Manifest(
        store.run_id,
        step,
        0,
        Reason.PERIODIC,
        {},
        True,
        utc_now(),
        {},
        {},
        {str(n): "0" * 32 for n in range(20)},
    )
    return publish_state(store, manifest, write)


def _choose(store: Store) -> None:
    """Choose and save as a supervisor does between two attempts and after a save."""
    newest_valid(store)
    publish(store, 10_000)
    store.apply_retention(RetentionPolicy(keep=2 * CHECKPOINTS[-1]))


def _checkpoints(root: Path) -> list[Figure]:
    stores = []
    for checkpoints in CHECKPOINTS:
        run = _new_run(root / f"checkpoints-{checkpoints}")
        store = Store.open(run, ["true"])
        for step in range(checkpoints):
            publish(store, step)
        _start(run)
        newest_valid(store)
        stores.append(store)
    young, old = stores
    of = f"with {CHECKPOINTS[1]:,} checkpoints"
    return [
        _in_turns(f"start of a run {of}", lambda: _start(young.run), lambda: _start(old.run)),
        _in_turns(f"choice and save {of}", lambda: _choose(young), lambda: _choose(old)),
        _in_turns(
            f"status of an ended run {of}",
            lambda: status_from_disk(young),
            lambda: status_from_disk(old),
        ),
    ]


def _metrics(root: Path) -> list[Figure]:
    root.mkdir(parents=True, exist_ok=True)
    files = []
    for lines in METRIC_LINES:
        path = root / f"metrics-{lines}.jsonl"
        with open(path, "w") as file:
            for step in range(1, lines + 1):
                file.write(f'{{"step": {step}, "epoch": 0, "poll": false, "time": "", "m": 1}}\n')
        files.append(path)

    def resume(path: Path, lines: int) -> None:
        text = json.dumps({"step": lines + 1, "epoch": 0, "poll": False, "m": 1})
        with open(path, "a") as file:
            file.write(f"{text}\n" * 100)
        cut_off(path, Position(lines, 0))

    return [
        _in_turns(
            f"cut of metrics.jsonl of {METRIC_LINES[1]:,} lines",
            lambda: resume(files[0], METRIC_LINES[0]),
            lambda: resume(files[1], METRIC_LINES[1]),
        )
    ]


def _attempts(root: Path) -> list[Figure]:
    runs = [_new_run(root / f"attempts-{attempts}") for attempts in ATTEMPTS]
    for run, attempts in zip(runs, ATTEMPTS, strict=True):
        for number in range(1, attempts + 1):
            run.attempt(number).root.mkdir()
    # A directory that has changed within the last seconds is listed again.
    for run in runs:
        os.utime(run.attempts, (0, 0))
    young, old = map(NewestAttempt, runs)
    return [
        _in_turns(
            f"look of attach for a newer attempt after {ATTEMPTS[1]:,}, 100 times",
            lambda: [young.number() for _ in range(100)],
            lambda: [old.number() for _ in range(100)],
        )
    ]
