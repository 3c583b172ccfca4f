"""Saves with Accelerate's save_state, and dies in the second one of the first attempt."""

import sys

import accelerate
import torch
from killed_save import arm

accelerator = accelerate.Accelerator(cpu=True)
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.Adam(model.parameters())
model, optimizer = accelerator.prepare(model, optimizer)
step = 0
if len(sys.argv) > 1:
    accelerator.load_state(sys.argv[1])
    step = int(sys.argv[1].rpartition("_")[2])
print("begins at", step, flush=True)
while step < 15:
    loss = model(torch.randn(8, 64)).pow(2).mean()
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    step += 1
    if step == 10:
        arm(20_000)  # the weights have 17 kB, the optimizer's state twice that
    if step % 5 == 0:
        accelerator.save_state(f"out/step_{step}")
