"""A LightningModule with ModelCheckpoint, and an epoch of one batch: Lightning starts epochs again.

python lit.py [CKPT_PATH]

With --kill-save it dies in the second save of the first attempt. Lightning writes a temporary file
and renames it, which is a copy where that is on another disk.
"""

import argparse
import shutil
import tempfile
import time

import torch
from killed_save import arm
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint


class Model(LightningModule):
    def __init__(self, pause):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)
        self.pause = pause

    def training_step(self, batch, _):
        time.sleep(self.pause)
        return self.layer(batch).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ckpt_path", nargs="?")
    parser.add_argument("--kill-save", action="store_true")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--pause", type=float, default=0.0)
    args = parser.parse_args()

    tempfile.tempdir = "/dev/shm"
    move, moves = shutil.move, []

    def second_is_the_last(source, target):
        moves.append(target)
        if args.kill_save and len(moves) == 2:
            arm(9_000)
        return move(source, target)

    shutil.move = second_is_the_last
    print("begins with", args.ckpt_path, flush=True)
    seed_everything(0)
    model = Model(args.pause)
    trainer = Trainer(
        max_steps=args.steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint("out", every_n_train_steps=5, save_top_k=-1)],
    )
    loader = torch.utils.data.DataLoader(torch.randn(4, 64), 4)
    trainer.fit(model, loader, ckpt_path=args.ckpt_path)
    torch.save(model.state_dict(), "final.pt")


main()
