"""A resumed run is bit for bit the run that was not interrupted."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint.checkpoint import read_checkpoint
from orchestrator.checkpoint.contents import STATE_FILE
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.store import Store
from orchestrator.rundir.paths import RunDir
from tests.training.attempts import COMPLETE, KILLED, STEPS, STOPPED, Case, Result
from tests.training.support import Training, assert_equal

WORKERS: list[dict[str, Any]] = [
    {"num_workers": 0},
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True},
]
ATTEMPTS_SECONDS = 350  # twenty times what they take on a quiet machine
ENDINGS = {"SIGTERM": STOPPED, "SIGKILL": KILLED}
# One, two and three in the first of two epochs, at its edge, and at the last step.
INTERRUPTIONS = [
    [("step", 2, "SIGKILL")],
    [("step", 1, "SIGTERM"), ("step", 3, "SIGKILL")],
    [("step", 1, "SIGKILL"), ("step", 2, "SIGTERM"), ("step", 3, "SIGTERM")],
    [("step", STEPS, "SIGTERM"), ("evaluation", STEPS, "SIGKILL"), ("step", STEPS + 1, "SIGTERM")],
    [("evaluation", STEPS, "SIGTERM"), ("step", 2 * STEPS, "SIGKILL")],
    [("step", 2 * STEPS, "SIGTERM")],
]


SHUFFLE_AND_ACCUMULATE = list(itertools.product((False, True), (1, 4)))


@pytest.mark.processes
@pytest.mark.parametrize("workers", WORKERS, ids=["alone", "workers", "persistent"])
def test_interrupted_runs_equal_the_uninterrupted_one(
    tmp_path: Path, workers: dict[str, Any]
) -> None:
    """Weights, optimizer, streams and history are equal, for all loaders and interruptions.

    Every two values meet, and each loader meets both orders with both accumulations.
    """
    cases = []
    for number, cuts in enumerate(INTERRUPTIONS, start=WORKERS.index(workers)):
        shuffle, accumulate = SHUFFLE_AND_ACCUMULATE[number % len(SHUFFLE_AND_ACCUMULATE)]
        cases.append(Case({**workers, "shuffle": shuffle}, accumulate, cuts))
    results, said = live(tmp_path, cases)
    for case, result in zip(cases, results, strict=True):
        endings = [ENDINGS[name] for *_, name in case.cuts] + [COMPLETE]
        assert result == Result(endings, "EXACT", []), (case, said[-2000:])


def live(root: Path, cases: list[Case]) -> tuple[list[Result], str]:
    """Return the result of each case, and what was printed meanwhile."""
    questions, answers, said = (root / name for name in ("cases.json", "results.json", "said"))
    questions.write_text(json.dumps(list(map(asdict, cases))))
    # Into files, and ended by group: a worker whose trainer is killed just as it is forked takes
    # the process that adopts it for its parent, and waits for ever with the pipes open.
    with open(questions) as stdin, open(answers, "w") as stdout, open(said, "w") as stderr:
        attempts = subprocess.Popen(
            [sys.executable, "-m", "tests.training.attempts", str(root)],
            cwd=Path(__file__).parents[2],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        status = attempts.wait(ATTEMPTS_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(attempts.pid, signal.SIGKILL)
    assert status == 0, said.read_text()
    return [Result(**result) for result in json.loads(answers.read_text())], said.read_text()


def test_skipped_samples_are_not_read(tmp_path: Path) -> None:
    """A run resumed in mid-epoch reads no sample that was consumed before."""
    first = Training(shuffle=False, epochs=1)
    first.run(tmp_path / "run", lambda session, place: session.global_step == 3)
    second = Training(shuffle=False, epochs=1)
    assert second.run(tmp_path / "run")
    dataset = second.loader.dataset
    assert dataset.read == list(range(16, 24))  # type: ignore[attr-defined]


def test_worker_count_does_not_change_the_data(tmp_path: Path) -> None:
    """Augmentation depends on the batch and not on who made it."""
    histories = []
    for workers in (0, 1, 2):
        training = Training(num_workers=workers)
        training.run(tmp_path / str(workers))
        histories.append(training.history)
    assert histories[0] == histories[1] == histories[2]


def removed(*keys: str) -> Callable[[dict[str, Any]], None]:
    """Remove an entry from the state."""

    def remove(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return remove


def as_at_the_start(name: str) -> Callable[[dict[str, Any]], None]:
    """Replace the state of an object by that of a new one."""

    def reset(content: dict[str, Any]) -> None:
        content[f"{name}_state_dict"] = getattr(Training(), name).state_dict()

    return reset


def without_position(content: dict[str, Any]) -> None:
    content["data"] |= {"passes": [], "pass": None}


def with_the_batch_before(content: dict[str, Any]) -> None:
    content["data"]["passes"][0]["batches"] -= 1


def without_moments(content: dict[str, Any]) -> None:
    content["optimizer_state_dict"]["state"] = {}


def without_plain_values(content: dict[str, Any]) -> None:
    content["state"] = {}


STREAMS = {
    "torch": removed("rng", "torch"),
    "python": removed("rng", "python"),
    "numpy": removed("rng", "numpy"),
    "generator": removed("rng", "generators", "generator"),
    "model": as_at_the_start("model"),
    "optimizer": as_at_the_start("optimizer"),
    "moments": without_moments,
    "scheduler": as_at_the_start("scheduler"),
    "position": without_position,
    "one batch": with_the_batch_before,
    "plain values": without_plain_values,
}


def rewrite_newest(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the newest checkpoint, whose file then has the digest that the manifest gives."""
    path = Store.open(RunDir(root), command=[]).directories()[-1]
    content = torch.load(path / STATE_FILE, weights_only=True)
    change(content)
    with open(path / STATE_FILE, "wb") as file:
        writer = DigestingWriter(file)
        torch.save(content, writer)  # type: ignore[arg-type]
    manifest = replace(read_checkpoint(path).manifest, files={STATE_FILE: writer.record()})
    (path / "manifest.json").write_bytes(manifest.to_json())


@pytest.mark.parametrize("stream", STREAMS)
def test_each_random_stream_matters(tmp_path: Path, stream: str) -> None:
    """With any one stream removed from the checkpoint the run differs, and mostly it says so."""
    whole = Training()
    whole.run(tmp_path / "whole")
    Training().run(tmp_path / "cut", lambda session, place: session.global_step == 7)
    rewrite_newest(tmp_path / "cut", STREAMS[stream])
    resumed = Training()
    resumed.run(tmp_path / "cut")
    with pytest.raises(AssertionError):
        assert_equal(resumed.result(), whole.result())
    # The script's own values may be anything, and have no digest.
    assert (resumed.exactness == "EXACT") == (stream == "plain values")


def test_rewriting_a_checkpoint_changes_nothing_by_itself(tmp_path: Path) -> None:
    """With nothing removed the run is the uninterrupted one, and says so."""
    whole = Training()
    whole.run(tmp_path / "whole")
    Training().run(tmp_path / "cut", lambda session, place: session.global_step == 7)
    rewrite_newest(tmp_path / "cut", lambda content: None)
    resumed = Training()
    assert resumed.run(tmp_path / "cut")
    assert_equal(resumed.result(), whole.result())
    assert resumed.exactness == "EXACT"
