"""Lightning's ModelCheckpoint, dying in the second save of the first attempt.

Lightning writes a temporary file and moves it to its place, which is a copy where that is on
another disk.
"""

import shutil
import sys
import tempfile

import torch
from killed_save import arm
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

tempfile.tempdir = "/dev/shm"
resume, move, moves = (sys.argv[1] if len(sys.argv) > 1 else None), shutil.move, []


def second_is_the_last(source, target):
    moves.append(target)
    if len(moves) == 2:
        arm(9_000)
    return move(source, target)


shutil.move = second_is_the_last


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def training_step(self, batch, _):
        return self.layer(batch).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


print("begins with", resume, flush=True)
trainer = Trainer(
    max_steps=15,
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[ModelCheckpoint("out", every_n_train_steps=5, save_top_k=-1)],
)
trainer.fit(Model(), torch.utils.data.DataLoader(torch.randn(64, 64), 4), ckpt_path=resume)
