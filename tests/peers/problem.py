"""The model, the data and the faults that all scripts share."""

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset

EPOCHS, STEPS_PER_EPOCH, BATCH = 3, 16, 8
STEPS = EPOCHS * STEPS_PER_EPOCH
SAVE_EVERY = 6
# A save of this many bytes takes long enough for a kill in the middle of it.
BALLAST_BYTES = 32 << 20
HERE = Path(os.environ.get("PEER_DIRECTORY", "."))
CHECKPOINTS = HERE / "checkpoints"
STEP_SECONDS = 0.02
FILLING = "filling"


class Noisy(Dataset):
    """Points with noise that is drawn at each access, as augmentation is."""

    def __len__(self):
        return STEPS_PER_EPOCH * BATCH

    def __getitem__(self, index):
        return torch.full((8,), index / len(self)) + torch.randn(8)


class Net(torch.nn.Module):
    """A small network with dropout, and a large buffer that is not trained."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1)
        )
        self.register_buffer("ballast", torch.zeros(BALLAST_BYTES // 4))

    def forward(self, x):
        return self.layers(x)

    def loss(self, x):
        return (self(x) - x.sum(1, keepdim=True)).square().mean()


def finish(model):
    """Write the digest of the final weights to the file that the driver reads."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.numpy().tobytes())
    (HERE / "result").write_text(digest.hexdigest())


def record_start(step):
    """Record the step from which this process trains."""
    with open(HERE / "starts", "a") as file:
        file.write(f"{step}\n")


def after_step(step):
    """Record a completed step, and inject the fault at its step; called after each step."""
    time.sleep(STEP_SECONDS)
    kind, _, at = os.environ.get("PEER_FAULT", "").partition("@")
    (HERE / "reached").write_text(str(step))
    if kind and step == int(at) and not (HERE / "fault").exists():
        (HERE / "fault").touch()
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "kill-in-save":
            threading.Thread(target=_kill_in_save, daemon=True).start()
        elif kind == "kill-agent":
            os.kill(os.getppid(), signal.SIGKILL)
        elif kind == "fill":
            _fill_the_disk()
        elif kind == "kill-all":
            if "TORCHELASTIC_RUN_ID" in os.environ:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def _fill_the_disk():
    with open(CHECKPOINTS / FILLING, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass


def _kill_in_save():
    """Kill the process as soon as a file of the next checkpoint grows."""
    before = _files()
    sys.setswitchinterval(1e-4)
    while True:
        for file, size in _files().items():
            if size > 0 and file not in before:
                os.kill(os.getpid(), signal.SIGKILL)
            if size != before.get(file, size):
                os.kill(os.getpid(), signal.SIGKILL)


def _files():
    found = {}
    for file in CHECKPOINTS.rglob("*"):
        try:
            if file.is_file():
                found[file] = file.stat().st_size
        except OSError:
            continue
    return found
