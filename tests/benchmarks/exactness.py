"""Costs of exactness: a resume deep in an epoch, and the digests of a snapshot."""

import shutil
import statistics
import time
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from orchestrator.checkpoint.manifest import Reason
from orchestrator.pace.save_schedule import NEVER
from orchestrator.training import Session
from orchestrator.training.data.data_position import DataPosition
from orchestrator.training.state.digests import digest_parts
from tests.benchmarks.figures import Figure, median_seconds
from tests.benchmarks.workload import Workload

BATCHES, BATCH_SIZE = 1_100_000, 8
DEEP_BATCH = 1_000_000
ROUNDS = 5
PACE_SECONDS = 60.0


class CountingDataset(Dataset[int]):
    """A dataset that counts the samples that are read."""

    def __init__(self) -> None:
        self.read = 0

    def __len__(self) -> int:
        return BATCHES * BATCH_SIZE

    def __getitem__(self, index: int) -> int:
        self.read += 1
        return index


def exactness_costs(root: Path) -> list[Figure]:
    """Measure resumes deep in an epoch, and the digests of snapshots."""
    resumes = [_first_batch(shuffle) for shuffle in (True, False)]
    sizes = [("10 MB", 10_000_000), ("600 MB", 600_000_000)]
    return resumes + [_self_check(name, size, root) for name, size in sizes]


def _first_batch(shuffle: bool) -> Figure:
    """Measure the time to the first batch of a resumed epoch, against a resume at batch 0.

    Raises RuntimeError if samples before that batch are read.
    """
    dataset = CountingDataset()
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=shuffle)

    def seconds_to_first_batch(batches: int) -> float:
        position = DataPosition(seed=1)
        saved = {"batches": batches, "loader": None}
        position.load({"seed": 1, "passes": [saved], "pass": 0, "last_epoch": []})
        began = time.perf_counter()
        next(position.batches(loader, 0))
        return time.perf_counter() - began

    seconds = {
        batches: [seconds_to_first_batch(batches) for _ in range(ROUNDS)]
        for batches in (0, DEEP_BATCH)
    }
    if dataset.read != 2 * ROUNDS * BATCH_SIZE:
        raise RuntimeError(f"{dataset.read} samples were read for {2 * ROUNDS} batches")
    more = [deep - first for first, deep in zip(*seconds.values(), strict=True)]
    name = f"resume at batch {DEEP_BATCH:,}{', shuffled' if shuffle else ''}: more than at batch 0"
    first = statistics.median(seconds[0])
    figure = Figure(name, "s", statistics.median(more), first, "at batch 0", 1.0)
    figure.spread = (min(more), max(more))
    return figure


def _self_check(name: str, state_bytes: int, root: Path) -> Figure:
    """Measure the share of time for digests, with as many snapshots as their budget allows."""
    shutil.rmtree(root, ignore_errors=True)
    workload = Workload(state_bytes)
    with Session(run_dir=root, model=workload.model, optimizer=workload.optimizer) as session:
        pace = session._open_run.saves.saver.pace
        deadline = time.monotonic() + PACE_SECONDS
        while pace.interval_seconds is None:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"the interval between snapshots was not set within {PACE_SECONDS:g} s"
                )
            workload.step()
            pace.next_ns = 0
            session.step()
        state = session._loop_state.state_to_save(Reason.PERIODIC).state
        share = median_seconds(lambda: digest_parts(state)) / pace.interval_seconds * 100
        pace.next_ns = NEVER
    shutil.rmtree(root)
    label = f"{name}: self-check, a snapshot every {pace.interval_seconds:.2g} s"
    return Figure(label, "% of the time", share, 0.0, "nothing", 0.1)
