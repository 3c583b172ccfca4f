"""The loop of PyTorch's fault tolerance tutorial, with one snapshot file from torch.save.

torchrun --standalone --nproc-per-node 1 --max-restarts 3 torch_save.py
"""

import torch
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
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import DataLoader

SNAPSHOT = CHECKPOINTS / "snapshot.pt"


@record
def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = DataLoader(Noisy(), BATCH, shuffle=True)
    first_epoch, step = 0, 0
    if SNAPSHOT.exists():
        snapshot = torch.load(SNAPSHOT)
        model.load_state_dict(snapshot["model"])
        optimizer.load_state_dict(snapshot["optimizer"])
        first_epoch, step = snapshot["epoch"], snapshot["step"]
    record_start(step)
    for epoch in range(first_epoch, EPOCHS):
        for index, x in enumerate(loader):
            if index < step - epoch * STEPS_PER_EPOCH:
                continue  # trained before the restart
            model.loss(x).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % SAVE_EVERY == 0:
                CHECKPOINTS.mkdir(exist_ok=True)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state | {"epoch": epoch, "step": step}, SNAPSHOT)
            after_step(step)
    finish(model)


main()
