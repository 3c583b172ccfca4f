"""A script that saves in DeepSpeed's layout, and resumes from what the file ``latest`` names.

``sharded.py ATTEMPTS``: each attempt but the last is killed in its third save, which ``latest``
names already, before the second of two ranks has written its part.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

attempts = int(sys.argv[1])
counter = Path("attempts")
attempt = int(counter.read_text()) if counter.exists() else 0
counter.write_text(str(attempt + 1))
out, latest = Path("out"), Path("out/latest")
step = 0
if latest.exists():
    tag = latest.read_text()
    parts = [torch.load(out / tag / f"zero_pp_rank_{r}_mp_rank_00_optim_states.pt") for r in (0, 1)]
    step = torch.load(out / tag / "mp_rank_00_model_states.pt")["global_steps"]
    assert [part["step"] for part in parts] == [step, step]
print("begins at step", step, flush=True)
for save in range(3):
    step += 1
    folder = out / f"global_step{step}"
    folder.mkdir(parents=True)
    model = {"optimizer": None, "dp_world_size": 2, "mp_world_size": 1, "global_steps": step}
    torch.save(model, folder / "mp_rank_00_model_states.pt")
    latest.write_text(folder.name)
    for rank in (0, 1):
        torch.save({"step": step}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if save == 2 and rank == 0 and attempt + 1 < attempts:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
    print("saved", step, flush=True)
    time.sleep(2.5)
