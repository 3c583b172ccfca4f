"""Runs each other tool under each fault, and prints the outcomes; see README.md here."""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from problem import FILLING

HERE = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "--max-restarts=3")
PEERS = {
    "torch.save loop under torchrun": (*TORCHRUN, str(HERE / "torch_save.py")),
    "DCP under torchrun": (*TORCHRUN, str(HERE / "dcp.py")),
    "Lightning ModelCheckpoint": (str(HERE / "lightning_checkpoint.py"),),
    "Hugging Face Trainer": (str(HERE / "hf_trainer.py"),),
}
UNDER_TORCHRUN = ("kill-agent",)
DAMAGES = ("bit-flip", "truncation", "missing-file")
# Faults that the script injects into itself; this process injects the others.
SELF_INJECTED = {"kill": "kill", "kill-in-save": "kill-in-save", "kill-agent": "kill-agent"}
SELF_INJECTED |= dict.fromkeys(DAMAGES, "kill-all")
SELF_INJECTED["disk-full"] = "fill"
FAULTS = (
    "none",
    *(fault for fault in SELF_INJECTED if fault != "disk-full"),
    "sigterm",
    "disk-full",
)
# A scheduler would restart it this often before a person looks at it.
MAX_STARTS = 3
START_SECONDS = 180.0
# Room for all checkpoints, until the fault fills the rest.
DISK_BYTES = 400 << 20


def outcome(command: tuple[str, ...], fault: str, at: int, seed: float, expected: str) -> str:
    """Return the outcome of a run under a fault; ``expected`` is the digest of final weights.

    With an empty ``expected`` it is the digest itself.
    """
    directory = Path(tempfile.mkdtemp(prefix="peer-"))
    try:
        with small_disk(directory / "checkpoints") if fault == "disk-full" else nullcontext():
            status = run_until_complete(directory, command, fault, at, random.Random(seed))
            result = directory / "result"
            steps = [int(line) for line in (directory / "starts").read_text().split()]
            lost = f", {at - steps[1]} steps again" if len(steps) > 1 else ""
            if status or not result.exists():
                return f"does not go on: {last_line(directory / 'log')}"
            if not expected or result.read_text() == expected:
                return result.read_text() if not expected else f"exact{lost}"
            return f"ends with other weights{lost}"
    finally:
        end_leftovers(directory)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    size = f"size={DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def run_until_complete(
    directory: Path, command: tuple[str, ...], fault: str, at: int, chance: random.Random
) -> int:
    """Restart the command until it exits with 0, as a scheduler does; return the last status."""
    environment = os.environ | {"PEER_DIRECTORY": str(directory), "PYTHONPATH": str(HERE)}
    environment["PEER_FAULT"] = f"{SELF_INJECTED[fault]}@{at}" if fault in SELF_INJECTED else ""
    status = 1
    for start in range(MAX_STARTS):
        with open(directory / "log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=log, stderr=log
            )
        if fault == "sigterm" and start == 0:
            while process.poll() is None and reached(directory) < at:
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        if status == 0 and (directory / "result").exists():
            break
        if fault in DAMAGES and start == 0:
            damage(directory / "checkpoints", fault, chance)
        if fault == "disk-full" and start == 0:
            # As if a person had made room.
            (directory / "checkpoints" / FILLING).unlink(missing_ok=True)
    return status


def reached(directory: Path) -> int:
    file = directory / "reached"
    return int(file.read_text() or 0) if file.exists() else 0


def damage(checkpoints: Path, kind: str, chance: random.Random) -> None:
    """Damage the largest file of the newest checkpoint."""
    newest = max(checkpoints.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    files = [newest] if newest.is_file() else [f for f in newest.rglob("*") if f.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    if kind == "missing-file":
        file.unlink()
    elif kind == "truncation":
        os.truncate(file, chance.randrange(file.stat().st_size))
    else:
        content = bytearray(file.read_bytes())
        offset = chance.randrange(len(content))
        content[offset] ^= 1 << chance.randrange(8)
        file.write_bytes(content)


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "Error" in line and not line.startswith("Traceback")]
    return ([*errors, *lines] or ["no output"])[-1 if not errors else len(errors) - 1][:160]


def end_leftovers(directory: Path) -> None:
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if str(directory).encode() in environ.read_bytes():
                os.kill(int(environ.parent.name), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3, help="number of runs for each fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=PEERS, metavar="PEER")
    parser.add_argument("--fault", action="append", choices=FAULTS, metavar="FAULT")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, dict[str, dict[str, int]]] = {}
    for peer, command in PEERS.items():
        if args.only and peer not in args.only:
            continue
        expected = outcome(command, "none", 0, 0, "")
        chance = random.Random(args.seed)
        results[peer] = {}
        for fault in FAULTS:
            # Drawn also for faults that are left out, so that the others get the same draws.
            draws = [(chance.randint(14, 40), chance.random()) for _ in range(args.times)]
            if fault in UNDER_TORCHRUN and "torchrun" not in peer:
                continue
            if args.fault and fault not in args.fault:
                continue
            found = Counter(outcome(command, fault, *draw, expected) for draw in draws)
            results[peer][fault] = dict(found)
            print(f"{peer} | {fault} | {dict(found)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


main()
