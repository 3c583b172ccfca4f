"""A training script that notes how long each of its steps took, for a comparison from outside.

It appends a line to steps.txt for each step: its process, the step, its begin and its end
(time.monotonic). A file named `raise` makes it fail, once.
"""

import contextlib
import os
import sys
import time

import torch

from orchestrator.training import Session

STEPS = int(sys.argv[1])
STEP_SECONDS = float(sys.argv[2])

model = torch.nn.Linear(2, 1)
notes = os.open("steps.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
with Session(model=model) as session:
    for step in session.steps(STEPS):
        began = time.monotonic()
        with contextlib.suppress(FileNotFoundError):
            os.unlink("raise")
            raise ValueError(f"asked to fail at {began}")
        time.sleep(STEP_SECONDS)
        os.write(notes, f"{os.getpid()} {step} {began} {time.monotonic()}\n".encode())
        session.step(loss=1.0)
