"""Which files may hold the state of a training, by their names and first bytes."""

import os
from enum import IntEnum
from pathlib import Path

from orchestrator.adopt.file_check import ZIP_MAGIC
from orchestrator.system.regular_files import open_regular

# What torch, Keras, Stable-Baselines3 and pickle write.
_STRONG = {
    *(".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors", ".distcp", ".pkl", ".pickle"),
    *(".zip", ".h5", ".keras", ".weights", ".model", ".msgpack", ".pdparams", ".joblib"),
}
# Data sets and results are as likely as checkpoints.
_WEAK = {".npz", ".npy"}
# torch.save's older format, and pickles, begin like this.
_PICKLE_MAGIC = b"\x80"


class Likeness(IntEnum):
    """How likely a file is to be a checkpoint or a part of one."""

    NONE = 0
    WEAK = 1
    STRONG = 2


def likeness(path: Path) -> Likeness:
    """Return how likely a file is to hold weights; a name without a known suffix is looked into."""
    if path.suffix in _STRONG:
        return Likeness.STRONG
    if path.suffix in _WEAK:
        return Likeness.WEAK
    if path.suffix and not path.suffix[1:].isdigit():
        return Likeness.NONE
    try:
        # The script may have a pipe or its terminal open, whose data is for another reader.
        with open(open_regular(path, os.O_RDONLY), "rb") as file:
            beginning = file.read(len(ZIP_MAGIC))
    except OSError:
        return Likeness.NONE
    is_saved = beginning == ZIP_MAGIC or beginning[:1] == _PICKLE_MAGIC
    return Likeness.STRONG if is_saved else Likeness.NONE
