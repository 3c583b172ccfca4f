"""Loads saved files as their program would, and prints how many, and which cannot be loaded.

Reads the paths from standard input, separated by NUL. It runs in the program's own environment, and
imports only what the files need. It trusts them: they come from the trial just before.
"""

import json
import pickle
import sys
import zipfile
from pathlib import Path


def load(path: str) -> bool:
    """Load one file; return False for a kind that is not known. Raises whatever the loader does."""
    name = Path(path).name
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    by_torch = name.endswith((".pt", ".pth", ".bin", ".ckpt", ".pth.tar"))
    if by_torch or (is_zip and name.endswith((".pkl", ".pickle"))):
        import torch

        torch.load(path, map_location="cpu", weights_only=False)
    elif name.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            for key in file.keys():  # noqa: SIM118
                file.get_tensor(key)
    elif name.endswith((".zip", ".keras", ".npz")):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            raise ValueError(f"{broken} is damaged")
    elif name.endswith(".h5"):
        import h5py

        with h5py.File(path) as file:
            file.visititems(lambda name, item: item[()] if isinstance(item, h5py.Dataset) else None)
    elif name.endswith(".json"):
        json.loads(Path(path).read_text())
    elif name.endswith((".pkl", ".pickle")):
        with open(path, "rb") as file:
            pickle.load(file)
    else:
        return False
    return True


def main() -> None:
    """Load each file, and print a JSON object."""
    loaded, torn = 0, []
    for path in filter(None, sys.stdin.read().split("\0")):
        try:
            loaded += load(path)
        except Exception as error:  # whatever a loader raises is what is looked for
            torn.append(f"{path}: {type(error).__name__}: {error}")
    print(json.dumps({"loaded": loaded, "torn": torn}))


if __name__ == "__main__":
    main()
