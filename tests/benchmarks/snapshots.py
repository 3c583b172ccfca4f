"""Costs of snapshots and checkpoints, against their floors and against other methods.

Each case runs in a separate process, so that its memory is free for the next one.
"""

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.benchmarks.figures import Figure, paired

ROOT = Path(__file__).parents[2]
CASE_SECONDS = 400
RESTORES = 3
OTHER_METHODS = {"dcp": "DCP async_save", "save": "torch.save, fsync, rename"}

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Size:
    """A size of the state, and the numbers of measurements with it."""

    name: str
    state_bytes: int
    rounds: int
    lost_rounds: int
    threads: tuple[int, ...]
    targets: bool = True


SIZES = [
    Size("10 MB", 10_000_000, 9, 5, (2, 1), targets=False),
    Size("600 MB", 600_000_000, 7, 4, (2, 1)),
    Size("3 GB", 3_000_000_000, 3, 2, (2,)),
]


def figures_of(size: Size, root: Path, device: str = "cpu") -> list[Figure]:
    """Measure snapshots, checkpoints, lost time and resumes for one size."""
    label = size.name if device == "cpu" else f"{size.name}, {device}"
    common = ["--bytes", str(size.state_bytes), "--device", device]
    figures = _saving(size, label, root, common)
    for threads in size.threads:
        figures += _lost_time(size, label, root, [*common, "--threads", str(threads)], threads)
    if device == "cpu":
        figures += _restoring(size, label, root, common)
    return figures


def _saving(size: Size, label: str, root: Path, common: list[str]) -> list[Figure]:
    times = supervised(root, "saving", *common, "--rounds", str(size.rounds))
    copy, write = "memory copy", "raw O_DIRECT write"
    least = [sum(pair) for pair in zip(times["copy"], times["raw_write"], strict=True)]
    target = 1.3 if size.targets else None
    durable = 1.25 if size.targets else None
    return [
        paired(f"{label}: stall of a snapshot", times["stall"], times["copy"], copy, target),
        paired(f"{label}: its thread's time", times["thread"], times["copy"], copy),
        paired(f"{label}: to durable", times["durable"], times["raw_write"], write, durable),
        paired(
            f"{label}: to durable, another floor", times["durable"], least, "copy, then raw write"
        ),
        paired(f"{label}: the writer alone", times["writer"], times["raw_write"], write),
        paired(f"{label}: supervisor's CPU", times["supervisor_cpu"], times["copy"], copy),
    ]


def _lost_time(size: Size, label: str, root: Path, common: list[str], threads: int) -> list[Figure]:
    seconds = min(6.0, max(0.5, size.state_bytes / 400e6))
    times = supervised(
        root,
        "lost-time",
        *common,
        "--rounds",
        str(size.lost_rounds),
        "--base-seconds",
        str(seconds),
    )
    label = f"{label}, {threads} thread{'s' if threads > 1 else ''}"
    lost = times["session_lost"]
    target = 1.7 if size.targets else None
    figures = [
        paired(f"{label}: lost per checkpoint", lost, times["copy"], "memory copy", target),
        paired(f"{label}: of that stall", times["session_stall"], times["copy"], "memory copy"),
        paired(
            f"{label}: supervisor's CPU meanwhile",
            times["supervisor_cpu"],
            times["copy"],
            "memory copy",
        ),
    ]
    for name, words in OTHER_METHODS.items():
        other_lost = times[f"{name}_lost"]
        figure = paired(f"{label}: lost against {words}", lost, other_lost, words)
        figure.target = 0.2 if size.targets else None
        figures.append(figure)
    return figures


def _restoring(size: Size, label: str, root: Path, common: list[str]) -> list[Figure]:
    shutil.rmtree(root, ignore_errors=True)
    run_dir = root / "run"
    memory = supervised(
        root, "restoring", *common, "--rounds", str(RESTORES), "--run-dir", str(run_dir), keep=True
    )
    disk: Times = {}
    for _ in range(RESTORES):
        result = root / "disk.json"
        words = [*_trainer("restoring", result), *common, "--run-dir", str(run_dir)]
        subprocess.run(words, cwd=ROOT, timeout=CASE_SECONDS, check=False)
        disk = _merged(result)
    shutil.rmtree(root, ignore_errors=True)
    target = 2.0 if size.targets else None
    copy, read = "memory copy", "raw O_DIRECT read"
    return [
        paired(f"{label}: resume from memory", memory["memory"], memory["copy"], copy, target),
        paired(
            f"{label}: resume from memory, another floor",
            memory["memory"],
            memory["clone"],
            "copy into fresh memory",
        ),
        paired(f"{label}: resume from disk", disk["disk"], disk["raw_read"], read, target),
        paired(f"{label}: torch.load, file cached", disk["load"], disk["raw_read"], read),
    ]


def on_cuda(root: Path) -> list[Figure]:
    """Measure every size with the model on a CUDA device; nothing if there is none."""
    if not torch.cuda.is_available():
        return []
    return [figure for size in SIZES for figure in figures_of(size, root, "cuda")]


def overheads(root: Path) -> list[Figure]:
    """Measure the overhead of snapshots, for the sizes that have a short interval."""
    return [
        _overhead("10 MB", 10_000_000, 60, 0.3, root),
        _overhead("600 MB", 600_000_000, 20, 2.0, root),
    ]


def _overhead(name: str, state_bytes: int, rounds: int, seconds: float, root: Path) -> Figure:
    """Measure training with snapshots at a budget of 1%, against training without them."""
    times = supervised(
        root,
        "overhead",
        "--bytes",
        str(state_bytes),
        "--rounds",
        str(rounds),
        "--base-seconds",
        str(seconds),
        budget="1%",
    )
    # Measured in windows shorter than the interval, whose steps would hide the snapshot by noise.
    every = statistics.median(times["interval"])
    pairs = zip(times["with_one"], times["without"], strict=True)
    shares = sorted((on - off) / every * 100 for on, off in pairs)
    figure = Figure(
        f"{name}: overhead at a budget of 1%, a snapshot every {every:.2g} s",
        "%",
        statistics.median(shares),
        0.0,
        f"the same steps without; {len(shares)} pairs",
        2.0,
    )
    figure.spread = (shares[len(shares) // 4], shares[-len(shares) // 4])
    return figure


def tiny(root: Path) -> list[Figure]:
    """Measure a snapshot of 100,000 tiny tensors, against ten times one of 10,000."""
    few, many = (
        supervised(root, "tiny", "--tensors", str(count), "--rounds", "3")
        for count in (10_000, 100_000)
    )
    tenfold = "10 times that of 10,000"
    figures = []
    for key, words in (("stall", "stall"), ("layout", "layout"), ("thread", "thread's time")):
        floors = [10 * seconds for seconds in few[key]]
        name = f"100,000 tiny tensors: {words}"
        figures.append(paired(name, many[key], floors, tenfold, 1.5))
    name = "100,000 tiny tensors: layout"
    figures.append(paired(name, many["layout"], many["save"], "torch.save into memory"))
    name = "100,000 tiny tensors: stall of the first save"
    figures.append(paired(name, many["first_stall"], many["save"][:1], "torch.save into memory"))
    stall = statistics.median(many["stall"])
    name = "100,000 tiny tensors: stall"
    return [Figure(name, "s", stall, 0.0, "nothing", 1.0), *figures]


def supervised(
    root: Path, case: str, *options: str, budget: str = "off", keep: bool = False
) -> Times:
    """Run a case of the trainer under `orchestrator run`, and return what it measured.

    With ``keep`` the trainer may be restarted, and the run directory is kept.
    """
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    result = root / "result.json"
    words = [sys.executable, "-m", "orchestrator", "run", "--run-dir", str(root / "run")]
    words += ["--keep", "2", "--every", "1d", "--snapshot-budget", budget]
    words += ["--max-restarts", "5" if keep else "0", "--"]
    words += [*_trainer(case, result), *options]
    ran = subprocess.run(
        words, cwd=ROOT, timeout=CASE_SECONDS, check=False, capture_output=True, text=True
    )
    if not result.exists():
        raise RuntimeError(f"the case {case} failed:\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}")
    times = _merged(result)
    journal = (root / "run" / "journal.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, journal) if "seconds" in event]
    times["writer"] = [e["seconds"] for e in events if e["event"] == "checkpoint_published"][1:]
    if not keep:
        shutil.rmtree(root)
    return times


def _trainer(case: str, result: Path) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.trainer", case, "--result", str(result)]


def _merged(result: Path) -> Times:
    times: Times = {}
    for line in result.read_text().splitlines():
        for name, values in json.loads(line).items():
            times.setdefault(name, []).extend(values)
    return times
