"""torch.distributed.checkpoint as in its recipe: a directory for each save, the newest is loaded.

torchrun --standalone --nproc-per-node 1 --max-restarts 3 dcp.py
"""

import torch
import torch.distributed.checkpoint as dcp
from problem import (
    BATCH,
    CHECKPOINTS,
    EPOCHS,
    SAVE_EVERY,
    STEPS_PER_EPOCH,
    Net,
    Noisy,
    after_step,
    finish,
    record_start,
)
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.utils.data import DataLoader


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = DataLoader(Noisy(), BATCH, shuffle=True)
    step = 0
    found = sorted(CHECKPOINTS.glob("step-*"))
    if found:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=found[-1])
        set_state_dict(
            model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        step = int(found[-1].name.removeprefix("step-"))
    record_start(step)
    for epoch in range(step // STEPS_PER_EPOCH, EPOCHS):
        for index, x in enumerate(loader):
            if index < step - epoch * STEPS_PER_EPOCH:
                continue  # trained before the restart
            model.loss(x).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % SAVE_EVERY == 0:
                weights, moments = get_state_dict(model, optimizer)
                state = {"model": weights, "optimizer": moments}
                dcp.save(state, checkpoint_id=CHECKPOINTS / f"step-{step:06d}")
            after_step(step)
    finish(model)
    torch.distributed.destroy_process_group()


main()
