"""Experiment trackers over restarts: one run in each tracker, one metrics line for each step."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

from tests.e2e.support import Supervised, WarmTrainers, events, wait_for

# As much of MLflow as a session looks at; its server makes the id, as the real one's does.
SCRIPT = """
import os, sys, time, types
import torch
from orchestrator.training import Session

names = ("WANDB_RUN_ID", "WANDB_RESUME", "MLFLOW_RUN_ID")
print("tracked as", *(os.environ.get(name) for name in names), flush=True)
run = types.SimpleNamespace(
    info=types.SimpleNamespace(run_id=os.environ.get("MLFLOW_RUN_ID") or "made-by-the-server"),
    data=types.SimpleNamespace(tags={}),
)
sys.modules["mlflow"] = types.SimpleNamespace(active_run=lambda: run)
with Session(model=torch.nn.Linear(1, 1)) as session:
    for step in session.steps(100):
        time.sleep(0.02)
        session.step(loss=step / 2)
"""


def test_killed_trainer_continues_its_tracker_runs_and_metrics(
    supervise: Callable[..., Supervised], warm_trainers: WarmTrainers, tmp_path: Path
) -> None:
    """After SIGKILLs each step has one line, and each tracker one run."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    run = supervise(
        command=[*warm_trainers.command[:-1], str(script)], options=("--every", "7steps")
    )
    for count in (2, 6):
        trainer = warm_trainers.newest()
        wait_for(lambda n=count: len(events(run.run, "checkpoint_published")) >= n, "checkpoints")
        assert trainer is not None
        trainer.send_signal(signal.SIGKILL)
    assert run.end()[0] == 0
    lines = [json.loads(line) for line in run.run.metrics_file.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 101))
    attempts = [line["attempt"] for line in lines]
    assert attempts == sorted(attempts)
    assert set(attempts) == {1, 2, 3}
    for attempt in (1, 2, 3):
        mlflow = None if attempt == 1 else "made-by-the-server"
        expected = f"tracked as {run.status()['run_id']} allow {mlflow}\n"
        assert expected in run.run.attempt(attempt).output_file.read_text()
