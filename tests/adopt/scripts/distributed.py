"""Saves with torch.distributed.checkpoint, and dies in the second one of the first attempt."""

import sys

import torch
import torch.distributed.checkpoint as dcp
from killed_save import arm

model = torch.nn.Linear(64, 64)
step = 0
if len(sys.argv) > 1:
    state = {"model": model.state_dict(), "step": 0}
    dcp.load(state, checkpoint_id=sys.argv[1])
    step = state["step"]
print("begins at", step, flush=True)
while step < 15:
    step += 1
    if step == 10:
        arm(9_000)
    if step % 5 == 0:
        dcp.save({"model": model.state_dict(), "step": step}, checkpoint_id=f"out/step-{step}")
