"""A script whose run meets every event of the journal about checkpoints.

    python journalled.py (session | framework) (fail | stop)

It saves at every fifth step. With ``fail`` a file is in the place of the directory of checkpoints
for a while, and the run completes after that; with ``stop`` it sends itself SIGTERM in the end.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from orchestrator.training import Session
from orchestrator.training.framework_run import FrameworkRun

RUN = Path("run")
FAIL_AT, FAILURE_STEPS, STOP_AT = 22, 30, 45
kind, task = sys.argv[1:]
torch.set_num_threads(1)
model = torch.nn.Linear(2, 1)


def failures() -> int:
    return RUN.joinpath("journal.jsonl").read_text().count('"checkpoint_failed"')


def interfere(step: int) -> None:
    """Fail a save, or stop the run, when its step has come."""
    if task == "fail" and step == FAIL_AT:
        (RUN / "checkpoints").rename(RUN / "away")
        (RUN / "checkpoints").touch()  # a directory that is only missing would be made again
    if (RUN / "away").exists() and failures():
        (RUN / "checkpoints").unlink()
        (RUN / "away").rename(RUN / "checkpoints")
    if task == "stop" and step == STOP_AT:
        os.kill(os.getpid(), signal.SIGTERM)


def is_over(step: int) -> bool:
    """Whether the run is complete: not before the failure is in the journal."""
    return task == "fail" and step >= FAILURE_STEPS and not (RUN / "away").exists()


def train_session() -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Session(model=model, optimizer=optimizer) as session:
        for _ in session.epochs(1):
            while not is_over(session.global_step):
                interfere(session.global_step)
                time.sleep(0.01)
                session.step(loss=1.0)


def train_framework() -> None:
    with FrameworkRun.open("toy", "1.0") as run:
        source = run.resume_from
        step = json.loads((source / "step").read_text()) if source else 0
        run.begin(step, 0)
        while not is_over(step):
            interfere(step)
            time.sleep(0.01)
            step += 1
            run.step(step, 0)
            run.record({"loss": 1.0})
            if run.save_wanted or is_over(step):
                output = Path("output") / str(step)
                output.mkdir(parents=True, exist_ok=True)
                (output / "step").write_text(json.dumps(step))
                run.publish(output, model, final=is_over(step))
            if run.stop_wanted:
                run.stop()


if __name__ == "__main__":
    {"session": train_session, "framework": train_framework}[kind]()
