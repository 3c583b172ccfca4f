"""How many processes a machine can train with: one for each GPU, or for each CPU."""

import os
import shutil
import subprocess

GPU_LIST = ("nvidia-smi", "-L")
GPU_LIST_SECONDS = 30.0


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_gpus() -> int:
    """Return the number of GPUs that a training would see; 0 if nothing tells.

    CUDA_VISIBLE_DEVICES counts first, then nvidia-smi.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    if shutil.which(GPU_LIST[0]) is None:
        return 0
    try:
        answer = subprocess.run(
            GPU_LIST, capture_output=True, text=True, timeout=GPU_LIST_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
