"""A Lightning script as a user would write it; it can first die inside Lightning's own save.

python lightning_train.py RESULT [--half-written]
"""

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from orchestrator.integrations.lightning import OrchestratorCallback

OWN = Path("own")
SAVE_AT = 20


class Noisy(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), index / 60) + torch.randn(8) * random.random()


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.2))

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        time.sleep(0.02)
        return (self.net(batch) - batch).square().mean()

    def validation_step(self, batch: torch.Tensor, number: int) -> None:
        self.log("val_loss", (self.net(batch) - batch).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def die_while_saving() -> None:
    """Kill this process in the middle of the copy to Lightning's checkpoint."""
    send = os.sendfile
    # Lightning writes to a temporary file and moves it; from another disk that is a copy.
    tempfile.tempdir = "/dev/shm"

    def send_half(target: int, source: int, offset: int, count: int) -> Any:
        send(target, source, offset, os.fstat(source).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    os.sendfile = send_half  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("--half-written", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for file in OWN.glob("*.ckpt"):
        try:
            torch.load(file)
        except (RuntimeError, EOFError):
            print(f"{file} cannot be loaded", flush=True)
    if args.half_written and os.environ["ORCHESTRATOR_ATTEMPT"] == "1":
        die_while_saving()
    pl.seed_everything(0, verbose=False)
    net = Net()
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            OrchestratorCallback(),
            ModelCheckpoint(OWN, every_n_train_steps=SAVE_AT, save_last=True),
        ],
    )
    trainer.fit(net, DataLoader(Noisy(), 2, shuffle=True), DataLoader(Noisy(), 20))
    optimizer = trainer.optimizers[0].state_dict()
    torch.save({"model": net.state_dict(), "optimizer": optimizer}, args.result)


main()
