"""Fuzzes each border for some time, guided by coverage: python -m tests.fuzzing --seconds 60.

An input that a reader fails on, or that takes too much time or memory, is kept in build/fuzzing/.
"""

import argparse
import os
import sys
from pathlib import Path

import atheris

FOLDER = Path("build/fuzzing")
# libFuzzer's limits for one input and for the process, torch included.
MOST_SECONDS = 30
MOST_MEGABYTES = 2048
LONGEST_INPUT_BYTES = 16384

# Before anything else loads these modules: only what is imported here reports its coverage.
with atheris.instrument_imports(include=["orchestrator", "pickletools", "zipfile"]):
    from tests.fuzzing.targets import Target, targets


def main() -> int:
    """Fuzz the borders one after the other, each in a process of its own, which a finding ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = targets()
    parser.add_argument("--only", choices=sorted(known), action="append", help="these borders only")
    parser.add_argument("--seconds", type=int, default=60, help="time for each border")
    arguments = parser.parse_args()
    names = arguments.only or list(known)
    failed = []
    for name in names:
        print(f"--- {name}", flush=True)
        if (pid := os.fork()) == 0:
            fuzz(FOLDER / name, known[name], arguments.seconds)
        if os.waitpid(pid, 0)[1] != 0:
            failed.append(name)
    print(f"{len(names) - len(failed)} of {len(names)} borders held", *failed)
    return 1 if failed else 0


def fuzz(folder: Path, target: Target, seconds: int) -> None:
    """Fuzz one border until the time is over, and end the process."""
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
    options = {
        "max_total_time": seconds,
        "timeout": MOST_SECONDS,
        "rss_limit_mb": MOST_MEGABYTES,
        "max_len": LONGEST_INPUT_BYTES,
        "artifact_prefix": f"{folder}{os.sep}",
        "verbosity": 0,
        "print_final_stats": 1,
    }
    words = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([sys.argv[0], *words, str(folder / "corpus")], target.read)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
