"""Lightning with ModelCheckpoint, resumed with ckpt_path="last".

python lightning_checkpoint.py
"""

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from problem import (
    BATCH,
    CHECKPOINTS,
    EPOCHS,
    HERE,
    SAVE_EVERY,
    Net,
    Noisy,
    after_step,
    finish,
    record_start,
)
from torch.utils.data import DataLoader


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def training_step(self, x, index):
        return self.net.loss(x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Steps(Callback):
    def on_train_start(self, trainer, module):
        record_start(trainer.global_step)

    def on_train_batch_end(self, trainer, *_):
        after_step(trainer.global_step)


lightning.seed_everything(0)
torch.set_num_threads(1)
module = Module()
saving = ModelCheckpoint(
    CHECKPOINTS,
    every_n_train_steps=SAVE_EVERY,
    save_top_k=3,
    monitor="step",
    mode="max",
    save_last=True,
)
trainer = lightning.Trainer(
    accelerator="cpu",
    max_epochs=EPOCHS,
    # The save comes first, so that a fault comes after the save of its step, as in other scripts.
    callbacks=[saving, Steps()],
    logger=False,
    enable_progress_bar=False,
    default_root_dir=HERE,
)
trainer.fit(module, DataLoader(Noisy(), BATCH, shuffle=True), ckpt_path="last")
if trainer.state.finished:
    finish(module.net)
