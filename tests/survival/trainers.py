"""Kills and stops runs of frameworks' own trainers, and compares their last checkpoints.

    python -m tests.survival.trainers [--kills 20] [--stops 5] [--seed 1]

`orchestrator chaos` compares sessions. These runs have none, so their published checkpoints are
compared. Half of the SIGKILLs come at a random moment, the others as soon as the trainer begins a
save. The last checkpoint must have the same bytes as that of an undisturbed run.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checkpoint.verification import verify
from orchestrator.rundir.paths import RunDir
from tests.e2e.support import (
    Supervised,
    assert_all_valid,
    events,
    forked_by,
    forking_server,
    kill_leftovers,
    open_store,
    wait_for,
)
from tests.survival.faults import parse

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@dataclass(frozen=True)
class Subject:
    """A script, the module that the forking process imports, and where the framework saves.

    ``ignored_files`` contain times or paths, and no trained values.
    """

    name: str
    script: Path
    arguments: tuple[str, ...]
    module: str
    saves: str
    ignored_files: frozenset[str]


SUBJECTS = (
    Subject(
        "transformers",
        EXAMPLES / "hf_trainer.py",
        ("--epochs", "150", "--samples", "128", "--context", "16", "--save-steps", "5"),
        "orchestrator.integrations.transformers",
        "hf-trainer/checkpoint-*",
        frozenset({"trainer_state.json", "training_args.bin"}),
    ),
)


class Trial:
    """A run of one subject under faults."""

    def __init__(self, subject: Subject, root: Path, server: Path) -> None:
        root.mkdir()
        self._subject = subject
        self._root = root
        self._command = [*forked_by(server), str(subject.script), *subject.arguments]
        self._pid_file = server.with_name(f"{server.name}.pid")
        self.run = self._start()

    def _start(self) -> Supervised:
        return Supervised(self._root, command=self._command)

    def inject(self, fault: str, chance: random.Random) -> None:
        """Let the run publish another checkpoint, then inject a fault."""
        count = len(events(self.run.run, "checkpoint_published"))
        self.run.wait_for_event("checkpoint_published", count + 1)
        exits = len(events(self.run.run, "attempt_exited"))
        if fault == "kill in a save":
            saves = set(self._root.glob(self._subject.saves))
            wait_for(lambda: set(self._root.glob(self._subject.saves)) - saves, "a save")
        else:
            time.sleep(chance.uniform(0, 0.5))
        if fault == "stop":
            self.run.signal(signal.SIGTERM)
            assert self.run.end()[0] == 75
            self.run = self._start()
        else:
            os.kill(int(self._pid_file.read_text()), signal.SIGKILL)
            self.run.wait_for_event("attempt_exited", exits + 1)


def final_digests(run: RunDir, ignored_files: frozenset[str]) -> dict[str, str]:
    """Verify the last checkpoint, and return the digests of its files."""
    newest = open_store(run).all()[-1]
    verify(newest)
    files = newest.manifest.files.items()
    return {name: record.xxh3_128 for name, record in files if name not in ignored_files}


def row(subject: Subject, faults: list[str], seed: int) -> str:
    """Run one subject under its faults, and return its row of the table."""
    chance = random.Random(seed)
    chance.shuffle(faults)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="survival-") as directory:
        root = Path(directory)
        # More threads would only slow down a model of this size.
        with forking_server(root / "server", subject.module, OMP_NUM_THREADS="1"):
            undisturbed = Trial(subject, root / "undisturbed", root / "server").run
            assert undisturbed.end()[0] == 0
            trial = Trial(subject, root / "disturbed", root / "server")
            try:
                for fault in faults:
                    trial.inject(fault, chance)
                status = trial.run.end()[0]
            finally:
                kill_leftovers(trial.run.run)
        assert_all_valid(trial.run.run)
        digests = [
            final_digests(run.run, subject.ignored_files) for run in (undisturbed, trial.run)
        ]
        differing = sorted({name for name, _ in digests[0].items() ^ digests[1].items()})
        exited = events(trial.run.run, "attempt_exited")
        resumed = events(trial.run.run, "resumed")
    repeated = [end["step"] - start["step"] for end, start in zip(exited, resumed, strict=False)]
    counts = (faults.count(name) for name in ("kill", "kill in a save", "stop"))
    words = (
        "yes" if status == 0 else "**no**",
        f"**no**: {', '.join(differing)}" if differing else "yes",
    )
    lost = f"{sum(repeated) / len(repeated):.1f}, at most {max(repeated)}"
    minutes = f"{(time.monotonic() - began) / 60:.1f}"
    cells = (subject.name, *counts, len(exited), lost, *words, minutes)
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.survival.trainers", description=__doc__)
    args, faults = parse(parser)
    print(
        "| trainer | kills | in a save | stops | attempts | steps done again | complete | equal "
        "| minutes |\n|---|---|---|---|---|---|---|---|---|"
    )
    table = [row(subject, list(faults), args.seed) for subject in SUBJECTS]
    print("\n".join(table))
    sys.exit(any("**no**" in line for line in table))


if __name__ == "__main__":
    main()
